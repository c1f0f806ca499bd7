"""Names everything that the course makes on Google Cloud, and the commands that make it."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

APIS = ("aiplatform", "artifactregistry", "cloudresourcemanager", "iam", "storage")
# The least that the pipeline's service account needs: to run jobs in the project, and to read and
# write the objects of this one bucket.
PROJECT_ROLE, BUCKET_ROLE = "roles/aiplatform.user", "roles/storage.objectUser"
DATA = ("preferences_train.jsonl", "prompts_train.jsonl")  # what a pipeline reads


class CloudError(RuntimeError):
    """The cloud lacks something or refused a request; the message names the remedy."""


def _from_environment(variable: str, default: str) -> str:
    return field(default_factory=lambda: os.environ.get(variable) or default)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Where the course works on Google Cloud; raises ValueError for names that Google refuses.

    `name` is part of all that the course makes (service account, TensorBoard, model, endpoint, a
    folder of the bucket), so that cleaning up finds these and nothing else.
    """

    project: str = _from_environment("GOOGLE_CLOUD_PROJECT", "")
    region: str = _from_environment("GOOGLE_CLOUD_REGION", "europe-west4")
    bucket: str = ""  # by default the project's name and the course's
    name: str = "rlhf-course"

    def __post_init__(self) -> None:
        if self.project and not self.bucket:
            object.__setattr__(self, "bucket", f"{self.project}-{self.name}")
        for what, form, remedy in (
            (
                "project",
                r"([a-z][a-z0-9-]{4,28}[a-z0-9])?",
                "Write the project's ID, not its title",
            ),
            ("region", r"[a-z]+-[a-z]+\d+", "Write a region such as europe-west4, not a zone"),
            ("bucket", r"([a-z0-9][a-z0-9._-]{1,61}[a-z0-9])?", "Write the name alone, no gs://"),
            ("name", r"[a-z][a-z0-9-]{4,28}[a-z0-9]", "Take 6 to 30 of a-z, 0-9 and -"),
        ):
            if not re.fullmatch(form, getattr(self, what)):
                raise ValueError(f"{what} is {getattr(self, what)!r}. {remedy}.")

    @property
    def service_account(self) -> str:
        return f"{self.name}@{self.project or 'PROJECT_ID'}.iam.gserviceaccount.com"

    @property
    def uri(self) -> str:
        """The course's folder of the bucket; `upload` writes into its folder `data`."""
        return f"gs://{self.bucket or 'BUCKET'}/{self.name}"


def setup_commands(setup: Setup) -> dict[str, str]:
    """The command for each check of `check_setup`, in the order in which to run them."""
    project, at = setup.project or "PROJECT_ID", f"--project={setup.project or 'PROJECT_ID'}"
    bucket = f"gs://{setup.bucket or 'BUCKET'}"
    member = f"--member=serviceAccount:{setup.service_account}"
    return {
        "credentials": "gcloud auth application-default login",
        "project": f"gcloud projects create {project} && export GOOGLE_CLOUD_PROJECT={project}",
        "APIs": f"gcloud services enable {' '.join(f'{a}.googleapis.com' for a in APIS)} {at}",
        "region": "export GOOGLE_CLOUD_REGION=europe-west4",
        "service account": f"gcloud iam service-accounts create {setup.name} {at}",
        "project role": f"gcloud projects add-iam-policy-binding {project} {member} "
        f"--role={PROJECT_ROLE} --condition=None",
        "TensorBoard": f"gcloud ai tensorboards create --display-name={setup.name} "
        f"--region={setup.region} {at}",
        "bucket": f"gcloud storage buckets create {bucket} --location={setup.region} "
        f"--uniform-bucket-level-access --public-access-prevention {at}",
        "bucket role": f"gcloud storage buckets add-iam-policy-binding {bucket} {member} "
        f"--role={BUCKET_ROLE}",
        "data": "gcloud storage cp "
        f"{' '.join(str(Path('data/summarize') / name) for name in DATA)} {setup.uri}/data/",
    }


def clean_up_commands(setup: Setup) -> dict[str, str]:
    """The commands that remove what the course has made, the most expensive first.

    Replace the words in capitals by the numbers that the `list` commands show.
    """
    at = f"--region={setup.region} --project={setup.project or 'PROJECT_ID'}"
    ours = f"--filter=displayName={setup.name} {at}"
    return {
        "find the endpoint": f"gcloud ai endpoints list {ours}",
        "find its model": f"gcloud ai endpoints describe ENDPOINT_ID {at}",
        "undeploy it (ends the bill)": "gcloud ai endpoints undeploy-model ENDPOINT_ID "
        f"--deployed-model-id=DEPLOYED_MODEL_ID {at}",
        "delete the endpoint": f"gcloud ai endpoints delete ENDPOINT_ID {at}",
        "find the model": f"gcloud ai models list {ours}",
        "delete the model": f"gcloud ai models delete MODEL_ID {at}",
        "find the TensorBoard": f"gcloud ai tensorboards list {ours}",
        "delete the TensorBoard": f"gcloud ai tensorboards delete TENSORBOARD_ID {at}",
        "delete the objects": f"gcloud storage rm --recursive {setup.uri}",
    }
