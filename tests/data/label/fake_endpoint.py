"""An OpenAI-compatible server that misbehaves as it is told, and remembers what it was asked."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Faults = Callable[[int], str | None]
"""Of the number of a request, from 0: what goes wrong with it."""


class FakeEndpoint(ThreadingHTTPServer):
    """
    Args:
        say: text and, if there are some, log-probabilities of single tokens for the last message.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self,
        say: Callable[[str], tuple[str, dict[str, float] | None]],
        faults: Faults = lambda _: None,
        seconds: float = 0.0,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.say = say
        self.faults = faults
        self.seconds = seconds
        self.lock = threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.paid: Counter[str] = Counter()
        """Whole answers, by what was asked."""
        self.under_way = 0
        self.most_under_way = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Quiet: clients that are killed hang up."""


class _Handler(BaseHTTPRequestHandler):
    server: FakeEndpoint  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            number = len(server.bodies)
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            server.times.append(time.monotonic())
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            time.sleep(server.seconds)
            self._answer(body, server.faults(number))
        finally:
            with server.lock:
                server.under_way -= 1

    def _answer(self, body: dict[str, Any], fault: str | None) -> None:
        if fault == "dies":
            self.close_connection = True
            self.connection.close()
            return
        if fault == "moved":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:1/v1/chat/completions")
            self.end_headers()
            return
        if fault and fault.split()[0].isdigit():
            status, _, after = fault.partition(" ")
            content = json.dumps({"error": {"message": f"no: {self.headers.get('Authorization')}"}}).encode()
            self._send(int(status), content, after)
            return
        content = json.dumps(self._completion(body)).encode()
        if fault == "cut":
            content = content[: len(content) // 2]
        elif fault == "slow":
            time.sleep(3.0)
        elif fault == "short":  # says more than it sends
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:20])
            self.close_connection = True
            return
        self._send(200, content)
        if fault is None:
            with self.server.lock:
                self.server.paid[body["messages"][-1]["content"]] += 1

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        text, chances = self.server.say(body["messages"][-1]["content"])
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        if chances is not None and body.get("logprobs"):
            top = [{"token": token, "logprob": value} for token, value in chances.items()]
            choice["logprobs"] = {"content": [{**top[0], "token": text, "top_logprobs": top}]}
        return {"choices": [choice], "usage": {"prompt_tokens": 30, "completion_tokens": 1}}

    def _send(self, status: int, content: bytes, retry_after: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serving(server: FakeEndpoint) -> Iterator[FakeEndpoint]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
