"""A job server as Ray's, in this process: takes jobs, runs nothing, and remembers what it was asked."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HAS = {"CPU": 4.0, "GPU": 1.0, "memory": "12.000 GiB"}
"""What each machine has."""


class FakeRay:
    """Set `jobs[...]["status"]` and the like between calls."""

    def __init__(self, version: str, token: str | None = None) -> None:
        self.version = version
        self.token = token
        self.jobs: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        """`METHOD /path` of every request."""
        self.machines: list[str] = ["ALIVE"]
        """State of each machine."""
        self.not_ready = 0
        """How many submissions it refuses because it has only just started."""
        self.address = ""

    def answer(self, method: str, path: str, body: Any, token: str | None) -> tuple[int, Any]:
        """Status and what is sent: JSON, or a text as it is."""
        self.asked.append(f"{method} {path}")
        if self.token is not None and token != f"Bearer {self.token}":
            return (
                (403, "Forbidden: Invalid authentication token") if token else (401, "Unauthorized: Missing")
            )
        parts = path.strip("/").split("/")
        match method, parts:
            case "GET", ["api", "version"]:
                return 200, {"ray_version": self.version}
            case "GET", ["api", "v0", _]:
                nodes = [
                    {
                        "state": state,
                        "node_id": str(place),
                        "node_ip": f"10.0.0.{place}",
                        "resources_total": HAS,
                    }
                    for place, state in enumerate(self.machines)
                ]
                return 200, {"data": {"result": {"result": nodes}}}
            case "GET", ["api", "jobs"]:
                return 200, [*self.jobs.values(), {"submission_id": None, "status": "RUNNING"}]
            case "POST", ["api", "jobs"] if self.not_ready:
                self.not_ready -= 1
                return 500, "No available agent to submit job, please try again later."
            case "POST", ["api", "jobs"]:
                job = {"status": "PENDING", "message": "Job has not started yet.", "driver_exit_code": None}
                self.jobs[body["submission_id"]] = {**body, **job, "logs": ""}
                return 200, {"submission_id": body["submission_id"]}
        job = self.jobs.get(parts[2])
        if job is None:
            return 404, f"Job {parts[2]} does not exist"
        match method, parts[3:]:
            case "GET", []:
                return 200, job
            case "GET", ["logs"]:
                return 200, {"logs": job["logs"]}
            case "POST", ["stop"]:
                job["status"] = "STOPPED"
                return 200, {"stopped": True}
        return 500, "Traceback (most recent call last):\n  ...\nValueError: what is that?"


@contextmanager
def fake_ray(version: str, token: str | None = None) -> Iterator[FakeRay]:
    """A `FakeRay` that listens at its `address`."""
    ray = FakeRay(version, token)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, said = ray.answer(self.command, self.path, body, self.headers.get("Authorization"))
            data = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing to the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    ray.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield ray
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
