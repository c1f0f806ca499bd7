"""Local stand-ins for Google Cloud at its HTTP boundary: real clients talk to them over sockets."""

import http.client
import json
import re
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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
