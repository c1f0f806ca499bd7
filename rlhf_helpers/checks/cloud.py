"""The exercises of L5: buckets and roles."""

import posixpath
import re
from typing import Any

from rlhf_helpers.checks.feedback import Feedback, try_function
from rlhf_helpers.cloud.setup import BUCKET_ROLE, PROJECT_ROLE


def valid_together(answer: Any) -> Feedback:
    """Check `answer(paths)`: whether all paths are objects of one bucket."""

    def buckets(paths: list[str]) -> list[str | None]:
        """The bucket of each path; None where it is not an object's address."""
        found = [re.fullmatch(r"gs://([^/]+)/.+", path) for path in paths]
        return [match[1] if match else None for match in found]

    return try_function(
        answer,
        lambda paths: len(set(buckets(paths))) == 1 and None not in buckets(paths),
        [
            (["gs://mine/data/a.jsonl", "gs://mine/data/b.jsonl"],),
            (["gs://mine/data/a.jsonl", "gs://mine/b.jsonl"],),
            (["gs://mine/a.jsonl", "gs://mine-too/a.jsonl"],),
            (["mine/a.jsonl", "mine/b.jsonl"],),
            (["gs://mine/a.jsonl", "gs://mine/b.jsonl", "gs://yours/c.jsonl"],),
        ],
        {
            "Two folders of one bucket are fine: compare what is between gs:// and the next /.": (
                lambda paths: len({posixpath.dirname(path) for path in paths}) == 1
            ),
            "`mine-too` begins with `mine` and is another bucket: compare the whole name.": (
                lambda paths: all(p.startswith("/".join(paths[0].split("/")[:3])) for p in paths)
            ),
            "A path without gs:// is on your disk, where no cloud machine can read it.": (
                lambda paths: len({path.removeprefix("gs://").split("/")[0] for path in paths}) == 1
            ),
        },
        "Right. The pipeline's account needs rights in one bucket, and nothing leaves its region.",
        "In gs://BUCKET/FOLDER/FILE, the bucket is path.split('/')[2]; all paths begin with gs://.",
    )


def least_roles(answer: Any) -> Feedback:
    """Check that `answer` is the least set of roles that the pipeline's service account needs."""
    hint = "It runs jobs on Vertex AI, reads the data sets, and writes models: two roles."
    if not isinstance(answer, set | list | tuple) or not answer:
        return Feedback(False, f"This is {answer!r}.", f"Write a set of roles. {hint}")
    needed, given = {PROJECT_ROLE, BUCKET_ROLE}, set(answer)
    if broad := given & {"roles/owner", "roles/editor"}:
        message = f"{', '.join(sorted(broad))} would do, and far more."
        return Feedback(False, message, "Whoever steals it owns your project: pick the least.")
    if missing := needed - given:
        job = "running jobs" if PROJECT_ROLE in missing else "reading and writing objects"
        return Feedback(False, "The pipeline would stop.", f"Which role allows {job}? {hint}")
    if extra := given - needed:
        message = f"It works without {', '.join(map(str, sorted(extra)))}."
        return Feedback(False, message, "Take away what no step of the pipeline uses.")
    return Feedback(True, "Right: it can run jobs, and touch one bucket. Nothing else.")
