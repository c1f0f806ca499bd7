"""Deletes what the course has made on Google Cloud, and nothing under another name.

Both functions only list what they would delete, unless `confirm` is the project's name.
"""

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
    """List the course's endpoints, models and TensorBoards; `confirm` deletes, as in storage.

    Models are undeployed from an endpoint first: a deployed model is billed by the hour even if
    nobody asks it. Google's RLHF component deploys in the pipeline's region, or by its own
    description in us-central1, so both are searched. Raises CloudError like `clean_up_storage`.
    """
    with needs_extra("cloud"):
        from google.cloud import aiplatform

    delete, rows = _is_confirmed(setup, confirm), []
    others: tuple[Any, ...] = (aiplatform.Model, aiplatform.Tensorboard)
    ours = f'display_name="{setup.name}"'
    try:
        aiplatform.init(project=setup.project, location=setup.region)
        for region in dict.fromkeys((setup.region, "us-central1")):
            for endpoint in aiplatform.Endpoint.list(filter=ours, location=region):
                deployed = len(endpoint.list_models())
                rows.append(("endpoint", endpoint.resource_name, f"{deployed} models deployed"))
                if delete:
                    endpoint.delete(force=True)  # undeploys too
            for kind in others:
                for resource in kind.list(filter=ours, location=region):
                    rows.append((kind.__name__.lower(), resource.resource_name, ""))
                    if delete:
                        resource.delete()
    except network_errors() as error:
        raise CloudError(f"Cleaning up Vertex AI failed: {error}. Run it again.") from error
    return _table(rows)


def _is_confirmed(setup: Setup, confirm: str) -> bool:
    if confirm and confirm != setup.project:
        raise CloudError(
            f"confirm is {confirm!r}, the project {setup.project!r}: nothing was deleted. "
            "Leave confirm out to see what would go."
        )
    return bool(confirm)


def _table(rows: list[tuple[str, str, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["kind", "name", "note"])
