"""Checks which parts of the set-up exist, without changing any."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any
from urllib.parse import urlencode

import pandas as pd

from rlhf_helpers.cloud.commands import setup_commands
from rlhf_helpers.cloud.setup import (
    APIS,
    BUCKET_ROLE,
    DATA,
    PROJECT_ROLE,
    QUOTA,
    SUBMITTER_PERMISSION,
    Setup,
)
from rlhf_helpers.cloud.storage import is_emulated, network_errors, open_bucket
from rlhf_helpers.extras import needs_extra

SERVICE = "https://{name}.googleapis.com"
TIMEOUT = 5.0  # seconds for each request

Problem = Callable[[dict], str]
Question = tuple[str, str, Problem, dict | None]
Finding = tuple[str, str]  # "ready", "missing" or "unknown", and what was found


def check_setup(setup: Setup | None = None) -> pd.DataFrame:
    """Return one row for each check: its state, what was found, and the command that mends it.

    Without an account or a network it says so within seconds. `unknown` means that the check could
    not be made yet: mend what is `missing`, then check again.
    """
    setup = setup or Setup()
    commands = setup_commands(setup)
    findings: dict[str, Finding] = {}
    credentials, reason = None, "not asked: storage is an emulator"
    if not is_emulated():
        findings["login"] = _login()
        credentials, findings["credentials"] = _credentials()
        reason = "needs a project's name" if credentials else "needs credentials"
    if not setup.project:
        findings["project"] = ("missing", "GOOGLE_CLOUD_PROJECT is not set")
    elif credentials:
        findings |= _check_services(setup, credentials)
        findings["quota project"] = _check_quota_project(setup, credentials)
    if setup.bucket and (credentials or is_emulated()):
        findings |= _check_storage(setup, credentials)
    findings = dict.fromkeys(commands, ("unknown", reason)) | findings
    rows = [
        (check, state, found, "" if state == "ready" else commands[check])
        for check, (state, found) in findings.items()
    ]
    return pd.DataFrame(rows, columns=["check", "state", "found", "command"])


def _login() -> Finding:
    """Whether gcloud is installed and has an account, which all its commands need."""
    program = shutil.which("gcloud")
    if not program:
        return "missing", "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
    asked = [program, "auth", "list", "--filter=status:ACTIVE", "--format=value(account)"]
    try:
        found = subprocess.run(asked, capture_output=True, text=True, timeout=4 * TIMEOUT)
    except subprocess.TimeoutExpired:
        return "unknown", "gcloud does not answer"
    return _state("" if found.stdout.strip() else "gcloud has no account")


def _check_quota_project(setup: Setup, credentials: Any) -> Finding:
    """Whether the clients' requests count against the course's project; others may be refused."""
    found = getattr(credentials, "quota_project_id", None)
    return _state("" if found == setup.project else f"it is {found}, not {setup.project}")


def _credentials() -> tuple[Any, Finding]:
    """Application default credentials that work, or None, and the finding."""
    # By default google-auth spends three times 3 s on finding out whether it runs on Google's
    # machines.
    os.environ.setdefault("GCE_METADATA_TIMEOUT", "1")
    os.environ.setdefault("GCE_METADATA_DETECT_RETRIES", "1")
    with needs_extra("cloud"):
        import google.auth
        from google.auth.exceptions import (
            DefaultCredentialsError,
            GoogleAuthError,
            TransportError,
        )
        from google.auth.transport.requests import Request

    def request(*arguments: Any, **options: Any) -> Any:
        options["timeout"] = min(options.get("timeout") or TIMEOUT, TIMEOUT)
        return Request()(*arguments, **options)

    scopes = ["https://www.googleapis.com/auth/cloud-platform"]
    try:
        credentials, _ = google.auth.default(scopes=scopes, request=request)  # type: ignore[arg-type]
        credentials.refresh(request)
    except DefaultCredentialsError:
        return None, ("missing", "no application default credentials")
    except TransportError as error:
        return None, ("unknown", f"Google cannot be reached: {_short(error)}")
    except GoogleAuthError as error:
        return None, ("missing", f"refused: {_short(error)}")
    return credentials, ("ready", "")


def _check_services(setup: Setup, credentials: Any) -> dict[str, Finding]:
    """Ask Google Cloud's services over REST, with one request for each check."""
    with needs_extra("cloud"):
        from google.auth.transport.requests import AuthorizedSession

    session = AuthorizedSession(credentials)
    return {
        check: _ask(session, f"{SERVICE.format(name=service)}/{path}", problem, body)
        for check, (service, path, problem, body) in _questions(setup).items()
    }


def _questions(setup: Setup) -> dict[str, Question]:
    """For each check: service, path, what names a problem in the answer, and the body of a POST."""
    project, vertex = f"projects/{setup.project}", f"{setup.region}-aiplatform"
    location = f"{project}/locations/{setup.region}"
    registry = f"v1/{location}/repositories/{setup.name}"
    names = urlencode([("names", f"{project}/services/{api}.googleapis.com") for api in APIS])
    ours = urlencode({"filter": f'display_name="{setup.name}"'})
    account = f"v1/{project}/serviceAccounts/{setup.service_account}"
    quotas = f"v1/{project}/locations/global/services/aiplatform.googleapis.com/quotaInfos"
    rights = {"permissions": [SUBMITTER_PERMISSION]}
    manager = "cloudresourcemanager"
    return {
        "project": (manager, f"v3/{project}", _inactive, None),
        "billing": ("cloudbilling", f"v1/{project}/billingInfo", _unbilled, None),
        "APIs": ("serviceusage", f"v1/{project}/services:batchGet?{names}", _disabled, None),
        "region": (vertex, f"v1/{location}", _nothing, None),
        "quota": ("cloudquotas", f"{quotas}?pageSize=5000", partial(_quota, setup), None),
        "service account": ("iam", account, _nothing, None),
        "project role": (manager, f"v3/{project}:getIamPolicy", partial(_role, setup), {}),
        "your role": ("iam", f"{account}:testIamPermissions", _not_permitted, rights),
        "registry": ("artifactregistry", registry, _nothing, None),
        "image": ("artifactregistry", f"{registry}/packages/rlhf-helpers", _nothing, None),
        "TensorBoard": (vertex, f"v1/{location}/tensorboards?{ours}", _no_board, None),
    }


def _ask(session: Any, url: str, problem: Problem, body: dict | None) -> Finding:
    """GET or, with a body, POST; `problem` reads the answer's JSON and names what is missing."""
    brief = {"timeout": TIMEOUT, "max_allowed_time": 2 * TIMEOUT}
    method = "GET" if body is None else "POST"
    try:
        response = session.request(method, url, json=body, **brief)
        answer = response.json()
    except network_errors() as error:
        return "unknown", _short(error)
    if response.ok:
        return _state(problem(answer))
    said = f"{response.status_code}: {_short(answer.get('error', {}).get('message', ''))}"
    return "missing" if response.status_code in (403, 404) else "unknown", said


def _check_storage(setup: Setup, credentials: Any) -> dict[str, Finding]:
    with needs_extra("cloud"):
        from google.api_core.exceptions import NotFound

    brief: dict[str, Any] = {"timeout": TIMEOUT, "retry": None}
    where = {} if is_emulated() else {"api_endpoint": SERVICE.format(name="storage")}
    try:
        bucket = open_bucket(setup, credentials=credentials, client_options=where)
        bucket.reload(**brief)
        bindings = bucket.get_iam_policy(requested_policy_version=3, **brief).bindings
        names = {blob.name for blob in bucket.list_blobs(prefix=f"{setup.name}/data/", **brief)}
    except NotFound:
        later = ("unknown", "needs the bucket")
        return {"bucket": ("missing", "none yet"), "bucket role": later, "data": later}
    except network_errors() as error:
        return dict.fromkeys(("bucket", "bucket role", "data"), ("unknown", _short(error)))
    # The emulator knows no regions.
    moved = bucket.location.lower() != setup.region and not is_emulated()
    absent = [name for name in DATA if f"{setup.name}/data/{name}" not in names]
    return {
        "bucket": _state(f"it is in {bucket.location}, not in {setup.region}" if moved else ""),
        "bucket role": _state(_lacks_role(bindings, setup, BUCKET_ROLE)),
        "data": _state(f"not there: {', '.join(absent)}" if absent else ""),
    }


def _nothing(body: dict) -> str:
    return ""


def _unbilled(body: dict) -> str:
    return "" if body.get("billingEnabled") else "no billing account is linked"


def _quota(setup: Setup, body: dict) -> str:
    """One GPU is the least; a quota without a region's own value is in `dimensions` {}."""
    details = [
        entry
        for quota in body.get("quotaInfos", [])
        if quota.get("metric", "").endswith(QUOTA)
        for entry in quota.get("dimensionsInfos", [])
        if entry.get("dimensions", {}).get("region", setup.region) == setup.region
    ]
    most = max((int(entry.get("details", {}).get("value", 0)) for entry in details), default=0)
    return "" if most else f"no GPU may be used for training in {setup.region}"


def _role(setup: Setup, body: dict) -> str:
    return _lacks_role(body.get("bindings", []), setup, PROJECT_ROLE)


def _not_permitted(body: dict) -> str:
    held = SUBMITTER_PERMISSION in body.get("permissions", ())
    return "" if held else "you may not submit jobs that run as the service account"


def _no_board(body: dict) -> str:
    return "" if body.get("tensorboards") else "none yet"


def _inactive(body: dict) -> str:
    return "" if body.get("state") == "ACTIVE" else f"its state is {body.get('state')}"


def _disabled(body: dict) -> str:
    services = body.get("services", [])
    enabled = {s["name"].rsplit("/", 1)[-1] for s in services if s.get("state") == "ENABLED"}
    off = [api for api in APIS if f"{api}.googleapis.com" not in enabled]
    return f"off: {', '.join(off)}" if off else ""


def _lacks_role(bindings: Iterable[Mapping], setup: Setup, role: str) -> str:
    member = f"serviceAccount:{setup.service_account}"
    held = any(b["role"] == role and member in b.get("members", ()) for b in bindings)
    return "" if held else f"the service account lacks {role}"


def _state(missing: str) -> Finding:
    return ("missing", missing) if missing else ("ready", "")


def _short(message: object) -> str:
    text = " ".join(str(message).split())
    return text if len(text) <= 100 else text[:100] + "…"
