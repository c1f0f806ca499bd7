"""Sends a pipeline to Vertex AI with the application default credentials."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google.auth.exceptions
from google.api_core.exceptions import GoogleAPICallError
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform
from kfp import compiler
from kfp.dsl.graph_component import GraphComponent

from rlhf_helpers.cloud import CloudError, Setup
from rlhf_helpers.pipelines import parameters
from rlhf_helpers.pipelines.google_models import MODELS, model_key
from rlhf_helpers.scales import Scale


def setup_for(values: Mapping[str, Any]) -> Setup:
    """Where to run: the parameters `project` and `location`, or the environment's where absent."""
    given = {"project": values.get("project"), "region": values.get("location")}
    return Setup(**{name: value for name, value in given.items() if value})


def submit(
    pipeline: GraphComponent,
    values: Mapping[str, Any],
    setup: Setup,
    pipeline_root: str = "",
    dry_run: bool = False,
) -> dict[str, Any]:
    """Ask Vertex AI to run a pipeline; returns the request as JSON. `dry_run` sends nothing.

    The job runs as the course's service account. Its artefacts go below `pipeline_root`, a gs://
    address, by default in the course's bucket. A dry run needs no account and opens no connection.
    Raises ValueError for bad parameters, and CloudError if there are no credentials or Vertex AI
    refuses the request.
    """
    given = {name: value for name, value in values.items() if value is not None}
    parameters.check(given, pipeline)
    _check_model(given, pipeline)
    given.setdefault("model_display_name", setup.name)  # by which `cloud.clean_up_vertex` finds it
    if not setup.project and not dry_run:
        raise CloudError("No project: set GOOGLE_CLOUD_PROJECT, or pass project=…")
    root = pipeline_root or f"{setup.uri}/pipeline"
    if not root.startswith("gs://"):
        raise ValueError(f"pipeline_root is {root!r}: it must be a gs:// address")
    try:
        job = _job(pipeline, given, setup, root, AnonymousCredentials() if dry_run else None)
        request = {
            "parent": f"projects/{setup.project or 'PROJECT_ID'}/locations/{setup.region}",
            "pipelineJobId": job.job_id,
            "pipelineJob": job.to_dict() | {"serviceAccount": setup.service_account},
        }
        if not dry_run:
            job.submit(service_account=setup.service_account)
    except google.auth.exceptions.DefaultCredentialsError:
        raise CloudError(
            "No application default credentials: run gcloud auth application-default login"
        ) from None
    except GoogleAPICallError as error:
        raise CloudError(f"Vertex AI refused the job: {error.message}") from error
    return request


def _check_model(given: Mapping[str, Any], pipeline: GraphComponent) -> None:
    """Raise ValueError if our pipeline is to tune a model that only Google's component has."""
    name = given.get("large_model_reference", "")
    if "scale" in parameters.inputs(pipeline) and model_key(name) in MODELS:
        raise ValueError(
            f"large_model_reference is {name!r}, which only Google's component has (--target "
            "google). Name a model of the hub, or leave it out to tune the scale's own model"
        )


def rented(given: Mapping[str, Any], gpu_type: str, gpu_count: int) -> str:
    """One sentence: what our pipeline tunes, and on what."""
    scale = Scale(given.get("scale", "tiny"))
    model = given.get("large_model_reference") or scale.base_model
    machine = f"{gpu_count} x {gpu_type}" if gpu_count else "CPUs alone"
    return f"tunes {model} at scale {scale.name}; every training step rents {machine}"


def _job(
    pipeline: GraphComponent,
    given: Mapping[str, Any],
    setup: Setup,
    root: str,
    credentials: AnonymousCredentials | None,
) -> aiplatform.PipelineJob:
    """The job, not yet sent; `credentials` None means the application default ones."""
    with tempfile.TemporaryDirectory() as folder:
        template = Path(folder) / "pipeline.json"
        compiler.Compiler().compile(pipeline, str(template))
        return aiplatform.PipelineJob(
            display_name=given["model_display_name"],
            template_path=str(template),
            pipeline_root=root,
            parameter_values=dict(given),
            encryption_spec_key_name=given.get("encryption_spec_key_name") or None,
            project=setup.project or "PROJECT_ID",
            location=setup.region,
            credentials=credentials,
        )
