"""The shell commands that set the course up on Google Cloud, and those that clean it up.

Each works on a new machine if the ones before it have succeeded. None makes a key.
"""

from dataclasses import replace
from pathlib import Path

from rlhf_helpers.cloud.setup import (
    APIS,
    BUCKET_ROLE,
    DATA,
    PROJECT_ROLE,
    QUOTA,
    SUBMITTER_ROLE,
    Setup,
)


def setup_commands(setup: Setup | None = None, **names: str) -> dict[str, str]:
    """Return the command for each check of `check_setup`, in the order in which to run them.

    `names` (project, region, bucket, name) replace those of `setup`, or of the environment.
    """
    setup = replace(setup or Setup(), **names)
    return _access_commands(setup) | _pipeline_commands(setup) | _storage_commands(setup)


def _access_commands(setup: Setup) -> dict[str, str]:
    """The commands for login, project, billing, services and GPU quota."""
    project = setup.project or "PROJECT_ID"
    services = " ".join(f"{api}.googleapis.com" for api in APIS)
    return {
        "login": "gcloud auth login",
        "credentials": "gcloud auth application-default login",
        "project": f"gcloud projects create {project}",
        "billing": f"gcloud billing projects link {project} --billing-account=BILLING_ACCOUNT_ID"
        "  # `gcloud billing accounts list` shows yours",
        "APIs": f"gcloud services enable {services} --project={project}",
        "quota project": f"gcloud auth application-default set-quota-project {project}",
        "region": f"export GOOGLE_CLOUD_PROJECT={project} GOOGLE_CLOUD_REGION={setup.region}",
        "quota": "gcloud beta quotas info list --service=aiplatform.googleapis.com "
        f"--project={project} --filter=metric:{QUOTA}  # ask for 1 or more in {setup.region}: "
        f"https://console.cloud.google.com/iam-admin/quotas?project={project}",
    }


def _pipeline_commands(setup: Setup) -> dict[str, str]:
    """The account that a pipeline runs as, its roles and yours, its image, and its TensorBoard."""
    project, account = setup.project or "PROJECT_ID", setup.service_account
    at = f"--project={project}"
    registry = setup.image.partition("/")[0]
    return {
        "service account": f"gcloud iam service-accounts create {setup.name} {at}",
        "project role": f"gcloud projects add-iam-policy-binding {project} "
        f"--member=serviceAccount:{account} --role={PROJECT_ROLE} --condition=None",
        "your role": f"gcloud iam service-accounts add-iam-policy-binding {account} "
        f"--member=user:$(gcloud config get-value account) --role={SUBMITTER_ROLE} {at}",
        "registry": f"gcloud artifacts repositories create {setup.name} "
        f"--repository-format=docker --location={setup.region} {at}",
        "image": f"gcloud auth configure-docker {registry} --quiet && "
        f"docker build -f scripts/Dockerfile -t {setup.image} . && docker push {setup.image}",
        "TensorBoard": f"gcloud ai tensorboards create --display-name={setup.name} "
        f"--region={setup.region} {at}",
    }


def _storage_commands(setup: Setup) -> dict[str, str]:
    """The bucket, the role of the pipeline's account in it, and the data sets."""
    bucket = f"gs://{setup.bucket or 'BUCKET'}"
    files = " ".join(str(Path("data/summarize") / name) for name in DATA)
    return {
        "bucket": f"gcloud storage buckets create {bucket} --location={setup.region} "
        "--uniform-bucket-level-access --public-access-prevention "
        f"--project={setup.project or 'PROJECT_ID'}",
        "bucket role": f"gcloud storage buckets add-iam-policy-binding {bucket} "
        f"--member=serviceAccount:{setup.service_account} --role={BUCKET_ROLE}",
        "data": f"gcloud storage cp {files} {setup.uri}/data/",
    }


def clean_up_commands(setup: Setup) -> dict[str, str]:
    """Return the commands that remove what the course has made, the most expensive first.

    Replace the words in capitals by what the `list` commands show.
    """
    project = setup.project or "PROJECT_ID"
    at, commands = f"--project={project}", {}
    for region in setup.regions:
        found = f"--filter=displayName={setup.name} --region={region} {at}"
        commands[f"find endpoints in {region}"] = f"gcloud ai endpoints list {found}"
    here = f"--region=REGION {at}"
    commands |= {
        "find an endpoint's model": f"gcloud ai endpoints describe ENDPOINT_ID {here}",
        "undeploy it (ends the bill)": "gcloud ai endpoints undeploy-model ENDPOINT_ID "
        f"--deployed-model-id=DEPLOYED_MODEL_ID {here}",
        "delete the endpoint": f"gcloud ai endpoints delete ENDPOINT_ID {here}",
        "models, TensorBoards, jobs and their metadata, in every region": 'python -c "from '
        "rlhf_helpers import cloud; print(cloud.clean_up_vertex(cloud.Setup("
        f"project='{project}', region='{setup.region}'), confirm='{project}'))\"",
        "delete the image": f"gcloud artifacts repositories delete {setup.name} "
        f"--location={setup.region} {at}",
        "delete the objects": f"gcloud storage rm --recursive {setup.uri}",
        "delete the bucket, if it is empty": f"gcloud storage buckets delete gs://{setup.bucket}",
        "take the role away": f"gcloud projects remove-iam-policy-binding {project} "
        f"--member=serviceAccount:{setup.service_account} --role={PROJECT_ROLE} --condition=None",
        "delete the service account": "gcloud iam service-accounts delete "
        f"{setup.service_account} {at}",
    }
    return commands
