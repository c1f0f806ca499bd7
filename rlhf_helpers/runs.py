"""Where everything that a run writes goes, and where the shipped data is read from.

    runs/<scale>/<task>/seed<k>/[live/]<stage>/    checkpoints, TensorBoard logs, metrics.json
    runs/<scale>/notebooks/                        executed copies of the notebooks
    runs/<scale>/results.json                      notebook name -> its numbers

All of it is anchored at the project's root, not at the working directory: a notebook finds what an
earlier one wrote, however it was started. The environment variable RLHF_RUNS moves `runs/`;
RLHF_HEADLESS=1 says that nobody sits in front of the notebooks.
"""

import json
import math
import os
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from filelock import FileLock

HEADLESS = "RLHF_HEADLESS"
PACKAGE = Path(__file__).resolve().parent


def _is_clone() -> bool:
    return (PACKAGE.parent / "pyproject.toml").is_file()


def project_root() -> Path:
    """Return the clone's root.

    Where the package was installed without a clone, it is the current directory, or the one above
    for a notebook, which runs in `notebooks/`.
    """
    if _is_clone():
        return PACKAGE.parent
    here = Path.cwd()
    return here.parent if here.name == "notebooks" else here


def data_dir() -> Path:
    """The shipped data sets: the clone's `data/`, or the copy that the wheel carries."""
    return PACKAGE.parent / "data" if _is_clone() else PACKAGE / "data"


def runs_dir() -> Path:
    """The folder of all runs: RLHF_RUNS where it is set, else `runs/` in the project's root."""
    moved = os.environ.get("RLHF_RUNS")
    return Path(moved).expanduser().resolve() if moved else project_root() / "runs"


def is_headless() -> bool:
    """Whether a notebook runs without a front end: RLHF_HEADLESS is 1, as the course sets it."""
    return os.environ.get(HEADLESS) == "1"


def stage_dir(
    scale: str, stage: str, task: str = "summarize", seed: int = 0, live: bool = False
) -> Path:
    """The folder of one stage's run; it is not created.

    `live` keeps what a notebook trains before the reader's eyes apart from what the pipeline of
    L3 publishes.
    """
    run = runs_dir() / scale / task / f"seed{seed}"
    return run / "live" / stage if live else run / stage


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write `obj` as JSON in one step: a reader sees the old file or the new one, never half.

    Raises ValueError, and writes nothing, for NaN and infinite numbers, which JSON does not have.
    """
    path = Path(path)
    try:
        text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise ValueError(f"{path}: JSON has no NaN and no infinite numbers") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def read_results(scale: str) -> dict[str, dict[str, float]]:
    """The numbers that the notebooks recorded at `scale`, by notebook; empty before the first."""
    path = runs_dir() / scale / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def record_results(scale: str, notebook: str, results: Mapping[str, float]) -> None:
    """Merge a notebook's numbers into `runs/<scale>/results.json`; processes take turns.

    Raises ValueError, and writes nothing, unless `results` maps names to finite numbers.
    """
    for name, value in results.items():
        if not isinstance(name, str):
            raise ValueError(f"{notebook}: the name of a result must be text, not {name!r}")
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"{notebook}: result {name!r} must be a finite number, not {value!r}")
    path = runs_dir() / scale / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        recorded = read_results(scale)
        numbers = {name: float(value) for name, value in results.items()}
        recorded[notebook] = recorded.get(notebook, {}) | numbers
        write_json(path, recorded)
