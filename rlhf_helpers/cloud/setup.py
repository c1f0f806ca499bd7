"""Names everything that the course makes on Google Cloud, and says where it is."""

import os
import re
from dataclasses import dataclass, field

APIS = (
    "aiplatform",
    "artifactregistry",
    "cloudbilling",
    "cloudquotas",
    "cloudresourcemanager",
    "iam",
    "storage",
)
# The least that the pipeline's service account needs: to run jobs in the project, and to read and
# write the objects of this one bucket.
PROJECT_ROLE, BUCKET_ROLE = "roles/aiplatform.user", "roles/storage.objectUser"
# What your own account needs to submit a job that runs as the service account.
SUBMITTER_ROLE, SUBMITTER_PERMISSION = "roles/iam.serviceAccountUser", "iam.serviceAccounts.actAs"
QUOTA = "custom_model_training_nvidia_l4_gpus"  # of Vertex AI, a region: one for each GPU of a job
GOOGLE_REGIONS = ("us-central1", "europe-west4")  # where Google's component tunes and deploys
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
    def image(self) -> str:
        """The address of the container image in the course's registry."""
        return (
            f"{self.region}-docker.pkg.dev/{self.project or 'PROJECT_ID'}/{self.name}/rlhf-helpers"
        )

    @property
    def regions(self) -> tuple[str, ...]:
        """Every region in which a pipeline of the course may have left something."""
        return tuple(dict.fromkeys((self.region, *GOOGLE_REGIONS)))

    @property
    def uri(self) -> str:
        """The course's folder of the bucket; `upload` writes into its folder `data`."""
        return f"gs://{self.bucket or 'BUCKET'}/{self.name}"
