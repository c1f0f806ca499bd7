"""Deletes what the course has made on Google Cloud, and nothing under another name.

Both functions only list what they would delete, unless `confirm` is the project's name.
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from rlhf_helpers.cloud.setup import CloudError, Setup
from rlhf_helpers.cloud.storage import network_errors, open_bucket
from rlhf_helpers.extras import needs_extra


def clean_up_storage(setup: Setup, confirm: str = "") -> pd.DataFrame:
    """List the course's objects in the bucket; delete them if `confirm` is the project's name.

    Raises CloudError for another `confirm`, or if the service fails. A bucket keeps deleted
    objects for some days (seven by default) and bills them, unless its soft delete is off.
    """
    delete = _is_confirmed(setup, confirm)
    try:
        objects = list(open_bucket(setup).list_blobs(prefix=f"{setup.name}/"))
        for blob in objects if delete else []:
            blob.delete()
    except network_errors() as error:
        raise CloudError(
            f"Cleaning up gs://{setup.bucket} failed: {error}. Run it again."
        ) from error
    return _table([("object", f"gs://{setup.bucket}/{o.name}", f"{o.size} bytes") for o in objects])


def clean_up_vertex(setup: Setup, confirm: str = "") -> pd.DataFrame:
    """List what the course has on Vertex AI, in every region; `confirm` deletes, as in storage.

    That is endpoints, models, TensorBoards, and pipeline jobs with their metadata. Models are
    undeployed from an endpoint first: a deployed model is billed by the hour even if nobody asks
    it. Google's RLHF component deploys in the pipeline's region, or by its own description in
    us-central1. Raises CloudError like `clean_up_storage`.
    """
    with needs_extra("cloud"):
        from google.cloud import aiplatform

    delete, rows = _is_confirmed(setup, confirm), []
    try:
        aiplatform.init(project=setup.project, location=setup.region)
        for region in setup.regions:
            for resource, note in list(_of_vertex(aiplatform, setup, region)):
                rows.append((type(resource).__name__.lower(), resource.resource_name, note))
                if delete and isinstance(resource, aiplatform.Endpoint):
                    resource.delete(force=True)  # undeploys too
                elif delete:
                    resource.delete()
    except network_errors() as error:
        raise CloudError(f"Cleaning up Vertex AI failed: {error}. Run it again.") from error
    return _table(rows)


def _of_vertex(aiplatform: Any, setup: Setup, region: str) -> Iterator[tuple[Any, str]]:
    """The course's resources in a region, each with a note, the billed ones first."""
    ours = {"filter": f'display_name="{setup.name}"', "location": region}
    for endpoint in aiplatform.Endpoint.list(**ours):
        yield endpoint, f"{len(endpoint.list_models())} models deployed"
    for kind in (aiplatform.Model, aiplatform.Tensorboard):
        for resource in kind.list(**ours):
            yield resource, ""
    for job in aiplatform.PipelineJob.list(**ours):
        yield job, ""
        run = job.gca_resource.job_detail.pipeline_run_context.name
        if run:
            inside = {"filter": f'in_context("{run}")', "location": region}
            for kind in (aiplatform.Artifact, aiplatform.Execution):
                for resource in kind.list(**inside):
                    yield resource, "metadata"
            yield aiplatform.Context(run), "metadata"


def _is_confirmed(setup: Setup, confirm: str) -> bool:
    if confirm and confirm != setup.project:
        raise CloudError(
            f"confirm is {confirm!r}, the project {setup.project!r}: nothing was deleted. "
            "Leave confirm out to list what would be deleted."
        )
    return bool(confirm)


def _table(rows: list[tuple[str, str, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["kind", "name", "note"])
