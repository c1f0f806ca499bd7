"""Local stand-ins for Google Cloud at its HTTP boundary: real clients talk to them over sockets."""

import http.client
import json
import re
import shlex
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from gcp_storage_emulator.server import create_server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def storage_emulator():
    """gcp-storage-emulator, in memory; gives its port."""
    port = free_port()
    with create_server("127.0.0.1", port, in_memory=True):
        yield port


@contextmanager
def serving(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class Wire:
    """A proxy in front of the emulator: lets `good` chunks (PUT) pass, then cuts `cuts` of them.

    A cut chunk is lost half way: the connection breaks without an answer.
    """

    def __init__(self, port: int, good: int = 0, cuts: float = 0) -> None:
        self.port, self.good, self.cuts, self.chunks = port, good, cuts, 0

    def handler(wire):
        class Handler(BaseHTTPRequestHandler):
            def forward(self):
                length = int(self.headers.get("Content-Length") or 0)
                if self.command == "PUT":
                    wire.chunks += 1
                    if wire.chunks > wire.good and wire.cuts > 0:
                        wire.cuts -= 1
                        self.rfile.read(length // 2)
                        self.connection.shutdown(socket.SHUT_RDWR)
                        return
                upstream = http.client.HTTPConnection("127.0.0.1", wire.port)
                body = self.rfile.read(length)
                upstream.request(self.command, self.path, body, dict(self.headers))
                answer = upstream.getresponse()
                self.send_response_only(answer.status)
                for name, value in answer.getheaders():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.read())

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = forward

            def log_message(self, *_):
                pass

        return Handler


class FakeGoogle:
    """Answers (status, JSON) by the first pattern that fits "METHOD path"; keeps what came."""

    def __init__(self, answers: dict[str, tuple[int, dict]]) -> None:
        self.answers = answers
        self.asked, self.bearers, self.bodies = [], [], []

    def first(self, pattern: str, answer: tuple[int, dict]) -> None:
        self.answers = {pattern: answer} | {p: a for p, a in self.answers.items() if p != pattern}

    def handler(google):
        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                question = f"{self.command} {self.path}"
                google.asked.append(question)
                google.bearers.append(self.headers.get("Authorization"))
                google.bodies.append(body.decode())
                fitting = [a for p, a in google.answers.items() if re.search(p, question)]
                status, answer = fitting[0] if fitting else (404, {"error": {"message": question}})
                content = json.dumps(answer).encode()
                self.send_response_only(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, *_):
                pass

        return Handler


class Refused(Exception):
    """What the real service would have answered to a command that came too early."""


@dataclass
class FakeProject:
    """A new machine and an empty Google Cloud account: runs shell commands, and answers REST.

    A command is refused as the real one is: without login, project, billing, an enabled API, or
    the account, repository or bucket that it names.
    """

    done: set[str] = field(default_factory=set)  # such as "login", "project p", "api iam"
    region: str = ""
    files: list[str] = field(default_factory=list)

    def need(self, *things: str) -> None:
        for thing in things:
            if thing not in self.done:
                raise Refused(f"there is no {thing}")

    def run(self, line: str) -> None:
        """Run a line of the shell; raises Refused."""
        for command in line.partition("  # ")[0].split(" && "):
            self._run(shlex.split(command.replace("$(gcloud config get-value account)", "me@b.c")))

    def _run(self, words: list[str]) -> None:
        options = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
        plain = " ".join(word for word in words if not word.startswith("--"))
        project = f"project {options.get('project')}"
        if plain.startswith("gcloud ") and "auth" not in words:
            self.need("login")
        if "project" in options:
            self.need(project)
        for pattern, action in self.ACTIONS.items():
            if found := re.fullmatch(pattern, plain):
                return action(self, options, *found.groups())
        raise Refused(f"unknown command: {plain}")

    def _link(self, _: dict, project: str) -> None:
        self.need(f"project {project}")
        self.done.add(f"billing {project}")

    def _enable(self, options: dict, apis: str) -> None:
        self.need(f"billing {options['project']}")
        self.done |= {f"api {api.removesuffix('.googleapis.com')}" for api in apis.split()}

    def _quota_project(self, _: dict, project: str) -> None:
        self.need("credentials", f"project {project}")
        self.done.add("quota project")

    def _export(self, _: dict, project: str, region: str) -> None:
        self.need(f"project {project}")
        self.region = region

    def _grant(self, options: dict, project: str) -> None:
        self.need("api cloudresourcemanager", options["member"])
        self.done.add(f"{options['role']} {project}")

    def _act_as(self, options: dict, account: str) -> None:
        self.need("api iam", f"serviceAccount:{account}")
        self.done.add("act as")

    def _repository(self, options: dict, name: str) -> None:
        self.need("api artifactregistry")
        self.done.add(f"repository {options['location']} {options['project']}/{name}")

    def _push(self, _: dict, region: str, repository: str) -> None:
        self.need("image built", f"docker {region}-docker.pkg.dev")
        self.need(f"repository {region} {repository}")
        self.done.add("image")

    def _board(self, options: dict) -> None:
        self.need("api aiplatform")
        self.done.add(f"board {options['region']}")

    def _bucket(self, options: dict, name: str) -> None:
        self.need("api storage", f"billing {options['project']}")
        self.done.add(f"bucket {name} {options['location']}")

    def _grant_bucket(self, options: dict, name: str) -> None:
        self.need(options["member"])
        self._find_bucket(name)
        self.done.add(f"{options['role']} {name}")

    def _copy(self, _: dict, files: str, bucket: str, folder: str) -> None:
        self._find_bucket(bucket)
        self.files += [folder + file.rsplit("/", 1)[-1] for file in files.split()]

    def _find_bucket(self, name: str) -> str:
        found = [thing for thing in self.done if thing.startswith(f"bucket {name} ")]
        self.need(*found or [f"bucket {name}"])
        return found[0].rsplit(" ", 1)[-1]

    def _quota(self, _: dict) -> None:
        self.need("api cloudquotas")
        self.done.add("quota")  # as if it were asked for, and granted

    def _account(self, options: dict, name: str) -> None:
        self.need("api iam")
        email = f"{name}@{options['project']}.iam.gserviceaccount.com"
        self.done.add(f"serviceAccount:{email}")

    ACTIONS: ClassVar[dict] = {
        r"gcloud auth login": lambda self, _: self.done.add("login"),
        r"gcloud auth application-default login": lambda self, _: self.done.add("credentials"),
        r"gcloud auth application-default set-quota-project (\S+)": _quota_project,
        r"gcloud projects create (\S+)": lambda self, _, p: self.done.add(f"project {p}"),
        r"gcloud billing projects link (\S+)": _link,
        r"gcloud services enable (.+)": _enable,
        r"export GOOGLE_CLOUD_PROJECT=(\S+) GOOGLE_CLOUD_REGION=(\S+)": _export,
        r"gcloud beta quotas info list": _quota,
        r"gcloud iam service-accounts create (\S+)": _account,
        r"gcloud projects add-iam-policy-binding (\S+)": _grant,
        r"gcloud iam service-accounts add-iam-policy-binding (\S+)": _act_as,
        r"gcloud artifacts repositories create (\S+)": _repository,
        r"gcloud auth configure-docker (\S+)": lambda self, _, h: self.done.add(f"docker {h}"),
        r"docker build -f scripts/Dockerfile -t \S+ \.": (
            lambda self, _: self.done.add("image built")
        ),
        r"docker push (\S+?)-docker\.pkg\.dev/(.+)/rlhf-helpers": _push,
        r"gcloud ai tensorboards create": _board,
        r"gcloud storage buckets create gs://(\S+)": _bucket,
        r"gcloud storage buckets add-iam-policy-binding gs://(\S+)": _grant_bucket,
        r"gcloud storage cp (.+) gs://([^/]+)/(\S+)": _copy,
    }  # the words of a command without its options

    def answers(self, setup) -> dict[str, tuple[int, dict]]:
        """What the REST services answer now; what is not here is a 404."""
        project, region = setup.project, setup.region
        account = f"serviceAccount:{setup.service_account}"
        apis = [thing.removeprefix("api ") for thing in self.done if thing.startswith("api ")]
        services = [
            {"name": f"projects/1/services/{a}.googleapis.com", "state": "ENABLED"} for a in apis
        ]

        def policy(place: str) -> dict:
            roles = [t.split()[0] for t in self.done if t.endswith(f" {place}") and "roles/" in t]
            return {"bindings": [{"role": role, "members": [account]} for role in roles]}

        metric = "aiplatform.googleapis.com/custom_model_training_nvidia_l4_gpus"
        quota = {"dimensions": {"region": region}, "details": {"value": "1"}}
        repository = f"locations/{region}/repositories/{setup.name}"
        given = {
            "POST /token": ("", {"access_token": "granted", "expires_in": 3600}),
            "services:batchGet": (f"project {project}", {"services": services}),
            "POST .*v3/projects/.*getIamPolicy": (f"project {project}", policy(project)),
            "billingInfo": (f"billing {project}", {"billingEnabled": True}),
            "quotaInfos": (
                "quota",
                {"quotaInfos": [{"metric": metric, "dimensionsInfos": [quota]}]},
            ),
            "POST .*testIamPermissions": ("act as", {"permissions": ["iam.serviceAccounts.actAs"]}),
            "serviceAccounts/[^:]*$": (account, {"email": setup.service_account}),
            f"{repository}/packages/rlhf-helpers": ("image", {"name": "i"}),
            f"{repository}$": (f"repository {region} {project}/{setup.name}", {"name": "r"}),
            "tensorboards[?]filter=display_name": (
                f"board {region}",
                {"tensorboards": [{"name": "t"}]},
            ),
            f"locations/{region}$": ("api aiplatform", {"name": "l"}),
            f"GET /cloudresourcemanager/v3/projects/{project}$": (
                f"project {project}",
                {"state": "ACTIVE"},
            ),
        }
        found = {
            p: (200, answer)
            for p, (thing, answer) in given.items()
            if not thing or thing in self.done
        }
        return found | self._storage_answers(setup, policy(setup.bucket))

    def _storage_answers(self, setup, policy: dict) -> dict[str, tuple[int, dict]]:
        try:
            region = self._find_bucket(setup.bucket)
        except Refused:
            return {}
        objects = [{"name": name, "bucket": setup.bucket} for name in self.files]
        return {
            "/iam[?]": (200, policy),
            f"b/{setup.bucket}/o": (200, {"items": objects}),
            f"b/{setup.bucket}": (200, {"name": setup.bucket, "location": region.upper()}),
        }
