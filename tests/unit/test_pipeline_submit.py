"""Submission: the real client of Vertex AI talks to a server on this machine, which keeps all."""

import json

import pytest
from cloud_fakes import FakeGoogle, serving
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform
from google.cloud.aiplatform import initializer

from rlhf_helpers.cloud import CloudError, Setup
from rlhf_helpers.commands.main import main
from rlhf_helpers.pipelines.portable import make_pipeline
from rlhf_helpers.pipelines.submit import submit

IMAGE = "registry.example/my-project/rlhf-helpers"
VALUES = {"scale": "smoke", "kl_coeff": 0.2, "model_display_name": "first try"}
JOBS = "/v1/projects/my-project/locations/europe-west4/pipelineJobs"


@pytest.fixture
def vertex(monkeypatch):
    """Vertex AI and Cloud Storage, as the client library sees them."""
    fake = FakeGoogle(
        {
            "POST .*pipelineJobs": (200, {"name": JOBS.removeprefix("/v1/") + "/1"}),
            # Least roles: the account may use the bucket's objects, not look at the bucket.
            "": (403, {"error": {"message": "storage.buckets.get denied"}}),
        }
    )
    with serving(fake.handler()) as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        aiplatform.init(
            api_endpoint=address, api_transport="rest", credentials=AnonymousCredentials()
        )
        yield fake
    initializer.global_config.__init__()


def test_the_job_that_arrives_is_the_one_that_a_dry_run_shows(vertex):
    setup = Setup(project="my-project", region="europe-west4")
    pipeline = make_pipeline(IMAGE, "NVIDIA_L4", 2)
    shown = submit(pipeline, VALUES, setup, dry_run=True)
    assert vertex.asked == [], "a dry run has opened a connection"
    sent = submit(pipeline, VALUES, setup)
    ((path, job),) = [
        (question.removeprefix("POST "), json.loads(body))
        for question, body in zip(vertex.asked, vertex.bodies, strict=True)
        if question.startswith("POST")
    ]
    assert path.split("?")[0] == JOBS
    assert f"pipelineJobId={sent['pipelineJobId']}" in path
    assert job == sent["pipelineJob"] == shown["pipelineJob"]
    assert job["displayName"] == "first try"
    assert (
        job["runtimeConfig"]["gcsOutputDirectory"]
        == "gs://my-project-rlhf-course/rlhf-course/pipeline"
    )
    assert job["runtimeConfig"]["parameterValues"] == VALUES
    assert job["serviceAccount"] == "rlhf-course@my-project.iam.gserviceaccount.com"
    executors = job["pipelineSpec"]["deploymentSpec"]["executors"]
    assert {e["container"]["image"] for e in executors.values()} == {IMAGE}


def test_the_command_says_what_is_tuned_on_what(vertex, capsys):
    given = ["--image", IMAGE, "--gpu-type", "NVIDIA_L4", "--gpu-count", "2", "--dry-run"]
    assert main(["pipeline", "submit", *given, "scale=small"]) == 0
    told = capsys.readouterr().err
    assert "tunes facebook/opt-350m at scale small" in told and "rents 2 x NVIDIA_L4" in told


def test_a_refusal_is_told_with_its_reason(vertex):
    vertex.first("POST .*pipelineJobs", (400, {"error": {"message": "no quota"}}))
    with pytest.raises(CloudError, match=r"refused the job: .*no quota"):
        submit(make_pipeline(IMAGE), VALUES, Setup(project="my-project"))


def test_without_credentials_one_is_told_how_to_log_in(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    assert main(["pipeline", "submit", "--image", IMAGE, "project=my-project"]) == 1
    assert capsys.readouterr().err.endswith(
        "error: No application default credentials: run gcloud auth application-default login\n"
    )


def test_what_cannot_be_submitted_is_refused_before_anything_is_sent(vertex, capsys):
    setup = Setup(project="my-project")
    with pytest.raises(ValueError, match="pipeline_root is 'local': it must be a gs:// address"):
        submit(make_pipeline(IMAGE), {}, setup, "local")
    with pytest.raises(ValueError, match="did you mean 'kl_coeff'"):
        submit(make_pipeline(IMAGE), {"kl_coef": 0.1}, setup)
    with pytest.raises(CloudError, match="GOOGLE_CLOUD_PROJECT"):
        submit(make_pipeline(IMAGE), {}, Setup(project=""))
    for name in ("llama-2-7b", "T5_XL"):
        with pytest.raises(ValueError, match=f"{name}', which only Google's component has"):
            submit(make_pipeline(IMAGE), {"large_model_reference": name}, setup, dry_run=True)
    assert main(["pipeline", "submit", "project=my-project"]) == 2
    assert "--image" in capsys.readouterr().err
    assert vertex.asked == []


def test_the_command_s_dry_run_prints_google_s_request_as_json(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    (tmp_path / "parameters.yaml").write_text(
        "prompt_dataset: gs://b/prompts.jsonl\npreference_dataset: gs://b/pairs.jsonl\n"
        "large_model_reference: llama-2-7b\nreward_model_train_steps: 1410\n"
    )
    given = [
        "--parameters",
        str(tmp_path / "parameters.yaml"),
        "kl_coeff=0.2",
        "deploy_model=false",
    ]
    assert main(["pipeline", "submit", "--target", "google", "--dry-run", *given]) == 0
    request = json.loads(capsys.readouterr().out)
    assert request["parent"] == "projects/PROJECT_ID/locations/europe-west4"
    values = request["pipelineJob"]["runtimeConfig"]["parameterValues"]
    assert (values["reward_model_train_steps"], values["kl_coeff"]) == (1410, 0.2)
    assert values["deploy_model"] is False
    assert request["pipelineJob"]["pipelineSpec"]["pipelineInfo"]["name"] == "rlhf-train-template"
