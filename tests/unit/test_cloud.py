"""Google Cloud, with the real clients against an emulator and fakes at the HTTP boundary."""

import contextlib
import json
import math
import os
import re
import socket
import subprocess
import sys
import time

import nbformat
import pytest
from cloud_fakes import FakeGoogle, FakeProject, Refused, Wire, serving, storage_emulator
from google.auth.transport.requests import AuthorizedSession
from google.cloud import storage
from google.oauth2 import credentials

from rlhf_helpers import cloud, schemas
from rlhf_helpers.cloud import check as checking
from rlhf_helpers.cloud import storage as storing
from rlhf_helpers.commands.plan.estimate import plan
from rlhf_helpers.runs import project_root
from rlhf_helpers.scales import Scale

SETUP = cloud.Setup(project="my-project", region="europe-west4")
ACCOUNT = f"serviceAccount:{SETUP.service_account}"
VERTEX = "projects/my-project/locations/europe-west4"
PAIR = {"input_text": "p", "candidate_0": "a", "candidate_1": "a b", "choice": 1}


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    """Whatever account this machine has, it is not found here."""
    for name in [*os.environ]:
        if name.startswith(("GOOGLE_", "STORAGE_EMULATOR")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "no_gcloud"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")


@pytest.fixture
def emulator(monkeypatch):
    with storage_emulator() as port:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        yield port


@pytest.fixture
def bucket(emulator):
    client = storage.Client(project=SETUP.project)
    return client.create_bucket(SETUP.bucket, location=SETUP.region)


@pytest.fixture
def wire(emulator, bucket, monkeypatch):
    """What uploads go through: it can be told to cut chunks."""
    wire = Wire(emulator)
    with serving(wire.handler()) as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        yield wire


@pytest.fixture
def pairs(tmp_path):
    """A file of five chunks."""
    path = tmp_path / "preferences_train.jsonl"
    text = "x" * (storing.CHUNK // 2)
    schemas.write_jsonl(path, [PAIR | {"input_text": f"{i} {text}"} for i in range(9)])
    return path


def states(table):
    return dict(zip(table["check"], table["state"], strict=True))


# ---- names and commands --------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [{"project": "My Project"}, {"region": "europe-west4-a"}, {"bucket": "gs://b"}, {"name": "X"}],
)
def test_a_name_that_cannot_be_is_refused_at_once(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        cloud.Setup(**{"project": "my-project"} | wrong)


def test_names_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "from-outside")
    monkeypatch.setenv("GOOGLE_CLOUD_REGION", "us-central1")
    setup = cloud.Setup()
    assert (setup.project, setup.region) == ("from-outside", "us-central1")
    assert setup.uri == "gs://from-outside-rlhf-course/rlhf-course"


def test_every_command_names_the_project_or_needs_none():
    commands = {**cloud.setup_commands(SETUP), **cloud.clean_up_commands(SETUP)}
    free = {"login", "credentials"}
    assert all("my-project" in command for check, command in commands.items() if check not in free)
    assert not any("key" in command for command in commands.values())


# ---- what is missing -----------------------------------------------------------------------


def test_with_nothing_there_every_check_names_its_command():
    table = cloud.check_setup(cloud.Setup())
    assert set(states(table).values()) == {"missing", "unknown"}
    assert states(table)["credentials"] == states(table)["project"] == "missing"
    assert table["command"].str.startswith(("gcloud ", "export ")).all()
    assert list(table["check"]) == list(cloud.setup_commands(SETUP))


def test_a_network_that_swallows_everything_does_not_hang_it(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        environment = os.environ | {"GCE_METADATA_IP": host, "GCE_METADATA_HOST": host}
        environment |= {"NO_GCE_CHECK": "false", "HTTPS_PROXY": f"http://{host}"}
        script = (
            "import time; from rlhf_helpers import cloud; import google.auth; t = time.monotonic();"
            "table = cloud.check_setup(cloud.Setup(project='my-project'));"
            "print(time.monotonic() - t, 'ready' in set(table['state']))"
        )
        command = [sys.executable, "-c", script]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    seconds, ready = run.stdout.split()
    assert float(seconds) < 12 and ready == "False", run.stderr


def test_against_the_emulator_storage_is_checked_and_nothing_else_asked(bucket, pairs):
    before = cloud.check_setup(SETUP)
    assert states(before)["bucket"] == "ready"
    assert states(before)["data"] == states(before)["bucket role"] == "missing"
    assert states(before)["credentials"] == "unknown"
    policy = bucket.get_iam_policy(requested_policy_version=3)
    policy.bindings.append({"role": "roles/storage.objectUser", "members": {ACCOUNT}})
    bucket.set_iam_policy(policy)
    cloud.upload(SETUP, pairs)
    half = cloud.check_setup(SETUP).set_index("check")["found"]["data"]
    assert half == "not there: prompts_train.jsonl"
    prompts = pairs.with_name("prompts_train.jsonl")
    schemas.write_jsonl(prompts, [{"input_text": "p"}])
    cloud.upload(SETUP, prompts, schemas.read_prompts)
    after = states(cloud.check_setup(SETUP))
    assert after["bucket"] == after["bucket role"] == after["data"] == "ready"


def test_without_a_bucket_the_emulator_says_so(emulator):
    table = cloud.check_setup(SETUP).set_index("check")
    assert table["state"]["bucket"] == "missing"
    assert table["command"]["bucket"].startswith(
        f"gcloud storage buckets create gs://{SETUP.bucket}"
    )


# ---- Google's services, faked at the HTTP boundary -----------------------------------------


def ready_project(setup: cloud.Setup = SETUP, leave_out: str = "") -> FakeProject:
    """A project on which all commands were run, but one; what depends on it is refused."""
    fake = FakeProject()
    for check, command in cloud.setup_commands(setup).items():
        with contextlib.nullcontext() if not leave_out else contextlib.suppress(Refused):
            if check != leave_out:
                fake.run(command)
    return fake


@pytest.fixture
def google(monkeypatch, tmp_path):
    """A fake of Google Cloud in which all is ready, with somebody logged in as gcloud does it."""
    fake = FakeGoogle(ready_project().answers(SETUP))
    login = {"type": "authorized_user", "client_id": "i", "client_secret": "s"}
    login["quota_project_id"] = SETUP.project
    gcloud = tmp_path / "bin" / "gcloud"
    gcloud.parent.mkdir()
    gcloud.write_text("#!/bin/sh\necho me@example.com\n")
    gcloud.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gcloud.parent}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "login.json").write_text(json.dumps(login | {"refresh_token": "r"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "login.json"))
    with serving(fake.handler()) as address:
        monkeypatch.setattr(credentials, "_GOOGLE_OAUTH2_TOKEN_ENDPOINT", address + "/token")
        monkeypatch.setattr(checking, "SERVICE", address + "/{name}")
        yield fake


def test_when_everything_is_there_no_command_is_left(google):
    table = cloud.check_setup(SETUP)
    assert set(table["state"]) == {"ready"} and set(table["command"]) == {""}, table.to_string()
    asked = [
        who
        for question, who in zip(google.asked, google.bearers, strict=True)
        if "/token" not in question
    ]
    assert len(asked) >= 14 and set(asked) == {"Bearer granted"}
    written = [q for q in google.asked if not q.startswith("GET") and "/token" not in q]
    reading = (":getIamPolicy", ":testIamPermissions")
    assert all(question.endswith(reading) for question in written), "it must only read"


@pytest.mark.parametrize(
    ("check", "pattern", "answer", "found"),
    [
        (
            "credentials",
            "POST /token",
            (400, {"error": "invalid_grant"}),
            "refused: .*invalid_grant",
        ),
        ("project", "GET /cloudres", (200, {"state": "DELETE_REQUESTED"}), "DELETE_REQUESTED"),
        ("APIs", "services:batchGet", (200, {"services": []}), "off: aiplatform, artifactregistry"),
        ("region", "locations/europe-west4$", (404, {"error": {"message": "no such"}}), "no such"),
        ("service account", "serviceAccounts/rlhf", (404, {"error": {"message": "none"}}), "404"),
        ("project role", "POST .*v3.*getIamPolicy", (200, {}), "lacks roles/aiplatform.user"),
        ("TensorBoard", "tensorboards[?]", (200, {}), "none yet"),
        ("billing", "billingInfo", (200, {"billingEnabled": False}), "no billing account"),
        ("quota", "quotaInfos", (200, {}), "no GPU may be used for training in europe-west4"),
        ("your role", "testIamPermissions", (200, {}), "you may not submit jobs"),
        ("registry", f"repositories/{SETUP.name}$", (404, {}), "404"),
        ("image", "packages/rlhf-helpers", (404, {}), "404"),
        (
            "bucket",
            "b/my-project-rlhf-course[?]",
            (200, {"location": "US"}),
            "in US, not in europe",
        ),
        ("bucket role", "/iam[?]", (200, {}), "lacks roles/storage.objectUser"),
        ("data", "/o[?]", (200, {}), "preferences_train.jsonl, prompts_train.jsonl"),
    ],
)
def test_each_thing_that_is_missing_is_found_with_its_command(
    google, check, pattern, answer, found
):
    google.first(pattern, answer)
    row = cloud.check_setup(SETUP).set_index("check").loc[check]
    assert row["state"] == "missing"
    assert row["command"] == cloud.setup_commands(SETUP)[check]
    assert re.search(found, row["found"])


@pytest.mark.parametrize("region", ["europe-west4", "us-central1"])
def test_the_commands_succeed_in_their_order_on_a_new_machine(region):
    setup = cloud.Setup(project="my-project", region=region)
    fake = FakeProject()
    for command in cloud.setup_commands(setup).values():
        fake.run(command)
    assert fake.region == region


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("login", "project"),
        ("project", "billing"),
        ("billing", "APIs"),
        ("credentials", "quota project"),
        ("project", "region"),
        ("APIs", "quota"),
        ("APIs", "service account"),
        ("service account", "project role"),
        ("service account", "your role"),
        ("APIs", "registry"),
        ("registry", "image"),
        ("APIs", "TensorBoard"),
        ("billing", "bucket"),
        ("bucket", "bucket role"),
        ("service account", "bucket role"),
        ("bucket", "data"),
    ],
)
def test_a_command_that_comes_before_what_it_needs_is_refused(first, second):
    fake, commands = FakeProject(), cloud.setup_commands(SETUP)
    names = list(commands)
    assert names.index(first) < names.index(second)
    for name in names[: names.index(second)]:
        with contextlib.suppress(Refused):
            if name != first:
                fake.run(commands[name])
    with pytest.raises(Refused):
        fake.run(commands[second])


@pytest.mark.parametrize("left_out", list(cloud.setup_commands(SETUP))[2:])
def test_whatever_was_left_out_is_found_missing(google, left_out):
    if left_out in ("quota project", "region"):
        return  # the first is of this machine, the second asks what Vertex AI serves
    google.answers = ready_project(leave_out=left_out).answers(SETUP)
    row = cloud.check_setup(SETUP).set_index("check").loc[left_out]
    assert row["state"] != "ready"
    assert row["command"] == cloud.setup_commands(SETUP)[left_out]


def test_one_region_is_given_once_and_stands_in_every_command(monkeypatch):
    monkeypatch.setenv("GOOGLE_CLOUD_REGION", "europe-west4")
    commands = cloud.setup_commands(region="us-central1", project="my-project")
    assert "GOOGLE_CLOUD_REGION=us-central1" in commands["region"]
    assert not any("europe" in command for command in commands.values())


def test_without_gcloud_or_its_account_the_login_is_missing(google, monkeypatch, tmp_path):
    (tmp_path / "bin" / "gcloud").write_text("#!/bin/sh\n")
    found = cloud.check_setup(SETUP).set_index("check")["found"]
    assert found["login"] == "gcloud has no account"
    monkeypatch.setenv("PATH", str(tmp_path))
    found = cloud.check_setup(SETUP).set_index("check")["found"]
    assert found["login"].startswith("gcloud is not installed")


def test_another_quota_project_is_found(google, monkeypatch):
    table = cloud.check_setup(cloud.Setup(project="other-project")).set_index("check")
    assert table["found"]["quota project"] == "it is my-project, not other-project"


def test_a_service_that_fails_is_unknown_not_missing(google):
    google.first("services:batchGet", (500, {"error": {"message": "later"}}))
    table = states(cloud.check_setup(SETUP))
    assert table.pop("APIs") == "unknown" and set(table.values()) == {"ready"}


# ---- uploads -------------------------------------------------------------------------------


def test_an_upload_arrives_whole_and_is_not_sent_twice(wire, bucket, pairs):
    uri = cloud.upload(SETUP, pairs)
    assert uri == f"gs://{SETUP.bucket}/rlhf-course/data/preferences_train.jsonl"
    assert wire.chunks == 5
    assert cloud.upload(SETUP, pairs) == uri and wire.chunks == 5
    [blob] = bucket.list_blobs()
    assert blob.download_as_bytes() == pairs.read_bytes()
    listed = cloud.list_data(SETUP)
    assert list(listed["uri"]) == [uri] and list(listed["bytes"]) == [pairs.stat().st_size]


def test_a_changed_file_replaces_the_older_one(bucket, pairs):
    cloud.upload(SETUP, pairs)
    schemas.write_jsonl(pairs, [PAIR])
    cloud.upload(SETUP, pairs)
    [blob] = bucket.list_blobs()
    assert blob.download_as_bytes() == pairs.read_bytes()


def test_a_bad_record_stops_the_upload_before_it_begins(bucket, pairs):
    schemas.write_jsonl(pairs, [PAIR, PAIR | {"choice": "1"}])
    with pytest.raises(schemas.DataError, match=r"preferences_train\.jsonl, line 2: `choice`"):
        cloud.upload(SETUP, pairs)
    assert cloud.list_data(SETUP).empty


def test_a_short_fault_of_the_network_is_mended_by_sending_the_chunk_again(wire, bucket, pairs):
    wire.good, wire.cuts = 2, 2
    cloud.upload(SETUP, pairs)
    assert wire.chunks == 5 + 2
    [blob] = bucket.list_blobs()
    assert blob.download_as_bytes() == pairs.read_bytes()


@pytest.mark.parametrize("older", [None, b"the older version"])
def test_an_interrupted_upload_leaves_nothing_half_done(wire, bucket, pairs, monkeypatch, older):
    name = "rlhf-course/data/preferences_train.jsonl"
    if older:
        bucket.blob(name).upload_from_string(older)
    monkeypatch.setattr(storing, "PATIENCE", 0.1)
    wire.good, wire.cuts = 2, math.inf
    with pytest.raises(cloud.CloudError, match=r"was interrupted .* Run this again"):
        cloud.upload(SETUP, pairs)
    assert wire.chunks > 2, "some of it must have been sent"
    found = bucket.get_blob(name)
    assert (found.download_as_bytes() if older else found) == older
    wire.cuts = 0
    cloud.upload(SETUP, pairs)
    assert bucket.blob(name).download_as_bytes() == pairs.read_bytes()


def test_without_a_bucket_or_an_account_the_error_names_the_command(emulator, pairs, monkeypatch):
    with pytest.raises(cloud.CloudError, match="gcloud storage buckets create"):
        cloud.upload(SETUP, pairs)
    with pytest.raises(cloud.CloudError, match="GOOGLE_CLOUD_PROJECT"):
        cloud.upload(cloud.Setup(), pairs)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    with pytest.raises(cloud.CloudError, match="gcloud auth application-default login"):
        cloud.upload(SETUP, pairs)


def done(kind: str, **fields: str) -> tuple[int, dict]:
    """The answer of a long operation that has ended, as Vertex AI gives it."""
    response = {"@type": f"type.googleapis.com/google.{kind}", **fields}
    return 200, {"name": f"{VERTEX}/operations/1", "done": True, "response": response}


# ---- clean-up ------------------------------------------------------------------------------


def test_clean_up_looks_first_and_deletes_only_what_is_the_courses(bucket, pairs):
    cloud.upload(SETUP, pairs)
    for name in ("rlhf-course/pipeline/model.bin", "rlhf-course-2/mine", "data/mine.jsonl"):
        bucket.blob(name).upload_from_string(b"x")
    ours = [f"{SETUP.uri}/data/preferences_train.jsonl", f"{SETUP.uri}/pipeline/model.bin"]
    assert list(cloud.clean_up_storage(SETUP)["name"]) == ours
    with pytest.raises(cloud.CloudError, match="nothing was deleted"):
        cloud.clean_up_storage(SETUP, confirm="yes")
    assert len(list(bucket.list_blobs())) == 4
    assert list(cloud.clean_up_storage(SETUP, confirm="my-project")["name"]) == ours
    assert [b.name for b in bucket.list_blobs()] == ["data/mine.jsonl", "rlhf-course-2/mine"]


def test_clean_up_undeploys_the_billed_endpoint_before_it_deletes():
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import aiplatform

    name = f"{VERTEX}/endpoints/7"
    deployed = {"id": "9", "model": f"{VERTEX}/models/3", "displayName": "rlhf-course"}
    endpoint = {"name": name, "displayName": "rlhf-course", "deployedModels": [deployed]}
    store = f"{VERTEX}/metadataStores/default"
    run, job = f"{store}/contexts/run-8", {"name": f"{VERTEX}/pipelineJobs/8"}
    job |= {"jobDetail": {"pipelineRunContext": {"name": run}}}
    google = FakeGoogle(
        {
            f"GET /v1/{VERTEX}/endpoints[?].*rlhf-course": (200, {"endpoints": [endpoint]}),
            f"GET /v1/{name}": (200, endpoint | {"trafficSplit": {"9": 100}}),
            f"GET /v1/{VERTEX}/models[?].*rlhf-course": (
                200,
                {"models": [{"name": f"{VERTEX}/models/3"}]},
            ),
            f"GET /v1/{VERTEX}/tensorboards[?].*rlhf-course": (
                200,
                {"tensorboards": [{"name": f"{VERTEX}/tensorboards/5"}]},
            ),
            f"GET /v1/{VERTEX}/pipelineJobs[?].*rlhf-course": (200, {"pipelineJobs": [job]}),
            f"GET /v1/{store}/artifacts[?].*in_context": (
                200,
                {"artifacts": [{"name": f"{store}/artifacts/1"}]},
            ),
            f"GET /v1/{store}/executions[?].*in_context": (
                200,
                {"executions": [{"name": f"{store}/executions/2"}]},
            ),
            f"GET /v1/{run}": (200, {"name": run}),
            "POST .*:undeployModel": done("cloud.aiplatform.v1.UndeployModelResponse"),
            "DELETE ": done("protobuf.Empty"),
            "GET .*us-central1/": (200, {}),
        }
    )
    with serving(google.handler()) as address:
        aiplatform.init(
            project="my-project",
            api_endpoint=address,
            api_transport="rest",
            credentials=AnonymousCredentials(),
        )
        seen = cloud.clean_up_vertex(SETUP)
        metadata = ["artifact", "execution", "context"]
        assert list(seen["kind"]) == ["endpoint", "model", "tensorboard", "pipelinejob", *metadata]
        assert seen["note"][0] == "1 models deployed"
        assert all(question.startswith("GET") for question in google.asked)
        cloud.clean_up_vertex(SETUP, confirm="my-project")
    changed = [question.split("?")[0] for question in google.asked if question[0] != "G"]
    assert changed == [
        f"POST /v1/{name}:undeployModel",
        f"DELETE /v1/{name}",
        f"DELETE /v1/{VERTEX}/models/3",
        f"DELETE /v1/{VERTEX}/tensorboards/5",
        f"DELETE /v1/{VERTEX}/pipelineJobs/8",
        f"DELETE /v1/{store}/artifacts/1",
        f"DELETE /v1/{store}/executions/2",
        f"DELETE /v1/{run}",
    ]
    assert any("us-central1" in question for question in google.asked)


# ---- what L5 only defines ------------------------------------------------------------------


def test_the_python_of_l5_asks_for_what_its_commands_ask_for(monkeypatch):
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import aiplatform, resourcemanager_v3

    lesson = nbformat.read(project_root() / "notebooks" / "L5_google_cloud_setup.ipynb", 4)
    names: dict = {"cloud": cloud, "time": time}
    for cell in lesson.cells:
        if cell.id in ("services", "prepare", "grant"):
            exec(cell.source, names)
    board = f"{VERTEX}/tensorboards/5"
    google = FakeGoogle(
        {
            "services:batchEnable": (200, {"name": "operations/7"}),
            "GET .*/operations/7$": (200, {"name": "operations/7", "done": True}),
            "POST .*/serviceAccounts$": (200, {}),
            "POST .*/tensorboards": done("cloud.aiplatform.v1.Tensorboard", name=board),
            "GET .*/tensorboards/5": (200, {"name": board}),
            "POST .*:[gs]etIamPolicy": (200, {}),
        }
    )
    direct, client = AuthorizedSession.request, resourcemanager_v3.ProjectsClient
    with serving(google.handler()) as address:

        def redirected(session, method, url, *arguments, **options):
            url = url if url.startswith(address) else url.replace("https:/", address)
            return direct(session, method, url, *arguments, **options)

        options = {"client_options": {"api_endpoint": address}, "transport": "rest"}
        options["credentials"] = AnonymousCredentials()
        monkeypatch.setattr(AuthorizedSession, "request", redirected)
        monkeypatch.setattr("google.auth.default", lambda scopes: (AnonymousCredentials(), None))
        monkeypatch.setattr(resourcemanager_v3, "ProjectsClient", lambda: client(**options))
        aiplatform.init(
            api_endpoint=address, api_transport="rest", credentials=options["credentials"]
        )
        assert names["prepare"](SETUP) == board
        names["grant_project_role"](SETUP)
    assert [question.split("?")[0] for question in google.asked if "POST" in question] == [
        "POST /serviceusage.googleapis.com/v1/projects/my-project/services:batchEnable",
        "POST /iam.googleapis.com/v1/projects/my-project/serviceAccounts",
        f"POST /v1/{VERTEX}/tensorboards",
        "POST /v3/projects/my-project:getIamPolicy",
        "POST /v3/projects/my-project:setIamPolicy",
    ]
    assert "roles/aiplatform.user" in google.bodies[-1] and ACCOUNT in google.bodies[-1]


# ---- cost ----------------------------------------------------------------------------------


def test_clean_up_covers_regions_image_account_and_metadata():
    setup = cloud.Setup(project="my-project", region="asia-northeast1")
    commands = " ".join(cloud.clean_up_commands(setup).values())
    for what in (
        *setup.regions,
        "artifacts repositories delete",
        "service-accounts delete",
        "remove-iam-policy-binding",
        "clean_up_vertex",
        "storage rm",
    ):
        assert what in commands
    assert setup.regions == ("asia-northeast1", "us-central1", "europe-west4")


def test_prices_have_a_source_and_a_date_and_the_endpoint_has_one():
    table = cloud.price_table().set_index("machine")
    rented = table[table["dollars an hour"] > 0]
    assert (rented["source"] != "").all() and rented["read"].str.contains("20").all()
    assert table["dollars an hour"]["8 x A100 40GB in 2023"] == 8.80
    assert cloud.ENDPOINT in table.index and cloud.GOOGLE_RUN.machine in table.index


def test_what_l5_says_of_the_costs_of_full_follows_from_the_plan():
    """PPO: two hundred times fewer tokens than SFT, and a quarter of its time."""
    found = {stage.stage: stage for stage in plan(Scale("full"), "A100 40GB", 8)}
    assert found["sft"].tokens > 200 * found["ppo"].tokens
    assert found["ppo"].hours / found["sft"].hours == pytest.approx(1 / 4, abs=0.05)
    assert max(found.values(), key=lambda stage: stage.hours).stage == "sft"


def test_the_cost_table_multiplies_and_says_how_hours_are_known():
    jobs = [cloud.Job("tiny", "mine", 0.5, "measured"), cloud.Job("full", "big", 24, "estimated")]
    table = cloud.cost_table(jobs, {"mine": 2, "big": 40.0})
    assert list(table["cost"]) == [1.0, 960.0]
    assert list(table["how"]) == ["measured", "estimated"]
    assert "price/hour" in table and "example price/hour" in cloud.cost_table([])


@pytest.mark.parametrize(
    ("job", "word"),
    [
        (cloud.Job("a", "abacus", 1, "measured"), "no price for 'abacus'"),
        (cloud.Job("a", "laptop", -1, "measured"), "0 or more"),
        (cloud.Job("a", "laptop", math.nan, "measured"), "0 or more"),
        (cloud.Job("a", "laptop", 1, "guessed"), "'measured' or 'estimated'"),
    ],
)
def test_a_job_that_cannot_be_priced_is_refused(job, word):
    with pytest.raises(ValueError, match=word):
        cloud.cost_table([job])
