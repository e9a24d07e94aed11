"""A Ray's job server, spoken to over HTTP: to import Ray's own client takes longer than all else here."""

import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal, cast

from llmscale_launcher.backends.base import SubmitError
from llmscale_launcher.ray.placement import Machine

ANSWER_SECONDS = 10.0
SUBMIT_SECONDS = 60.0
"""The first job of a fresh Ray waits for an agent process to come up."""
NOT_YET = "No available agent to submit job"
"""What it says until then; it gives up waiting after a few seconds."""
RETRY_SECONDS = 0.5
LOOPBACK = ("127.0.0.1", "localhost", "::1")

STOP_VARIABLES = {"RAY_JOB_STOP_WAIT_TIME_S": "600"}
"""Has Ray give a job that is stopped the time to save, in place of three seconds."""

JobStatus = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
OVER = ("STOPPED", "SUCCEEDED", "FAILED")


@dataclass(frozen=True)
class RayJob:
    """A job as the job server tells of it."""

    id: str
    status: JobStatus
    message: str
    exit_code: int | None
    """Of the entrypoint; None while it runs, and where it was stopped."""

    @property
    def is_over(self) -> bool:
        return self.status in OVER


class JobServer:
    """The job server of one Ray, `http://HOST:8265`.

    Every call raises SubmitError with a plain sentence when the server does not answer or says no.
    """

    def __init__(self, address: str, token: str | None = None) -> None:
        self.address = address.rstrip("/")
        self._token = token
        host = urllib.parse.urlsplit(self.address).hostname
        # A proxy of the environment is for the world outside, never for this machine.
        handlers = [urllib.request.ProxyHandler({})] if host in LOOPBACK else []
        self._opener = urllib.request.build_opener(*handlers)

    def version(self) -> str:
        """Version of Ray over there."""
        return str(self._object("GET", "/api/version")["ray_version"])

    def submit(
        self, id: str, entrypoint: str, variables: Mapping[str, str], metadata: Mapping[str, str]
    ) -> None:
        """Start `entrypoint` (a shell command) as the job `id`, with `variables` in its environment."""
        body = {
            "submission_id": id,
            "entrypoint": entrypoint,
            "runtime_env": {"env_vars": dict(variables)},
            "metadata": dict(metadata),
        }
        deadline = time.monotonic() + SUBMIT_SECONDS
        while True:
            try:
                self._ask("POST", "/api/jobs/", body, SUBMIT_SECONDS)
                return
            except SubmitError as error:
                if NOT_YET not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(RETRY_SECONDS)

    def job(self, id: str) -> RayJob | None:
        """The job `id`; None where this Ray has never heard of it."""
        try:
            return _as_job(self._object("GET", f"/api/jobs/{urllib.parse.quote(id)}"))
        except UnknownJobError:
            return None

    def jobs(self) -> dict[str, RayJob]:
        """All jobs that came through the job server, by id."""
        found = cast(list[dict[str, Any]], self._ask("GET", "/api/jobs/"))
        return {item["submission_id"]: _as_job(item) for item in found if item.get("submission_id")}

    def machines(self) -> list[Machine]:
        """Those of this Ray that are alive."""
        listed = self._object("GET", "/api/v0/nodes?limit=10000")["data"]["result"]["result"]
        return [
            Machine(
                id=node["node_id"],
                address=node["node_ip"],
                cpus=node["resources_total"].get("CPU", 0.0),
                gpus=node["resources_total"].get("GPU", 0.0),
            )
            for node in listed
            if node["state"] == "ALIVE"
        ]

    def logs(self, id: str) -> str:
        """Everything that the entrypoint has written."""
        return str(self._object("GET", f"/api/jobs/{urllib.parse.quote(id)}/logs")["logs"])

    def stop(self, id: str) -> None:
        """Have the entrypoint get SIGTERM; returns at once."""
        self._ask("POST", f"/api/jobs/{urllib.parse.quote(id)}/stop")

    def _object(self, method: str, path: str) -> dict[str, Any]:
        return cast(dict[str, Any], self._ask(method, path))

    def _ask(self, method: str, path: str, body: object = None, seconds: float = ANSWER_SECONDS) -> object:
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, headers, method=method)
        try:
            with self._opener.open(request, timeout=seconds) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise SubmitError(f"no Ray answers at {self.address} ({reason})") from None
        except ValueError:
            raise SubmitError(f"what answers at {self.address} is not a Ray's job server") from None

    def _refusal(self, error: urllib.error.HTTPError) -> SubmitError:
        text = error.read().decode(errors="replace").strip()
        last_line = text.splitlines()[-1] if text else error.reason
        if error.code == 404 and "does not exist" in text:
            return UnknownJobError(last_line)
        if error.code in (401, 403):
            missing = "asks for a token" if error.code == 401 else "does not take this token"
            return SubmitError(
                f"the Ray at {self.address} {missing}; put its token into RAY_AUTH_TOKEN, "
                "a file named by RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token"
            )
        return SubmitError(f"the Ray at {self.address} refused ({error.code}): {last_line}")


class UnknownJobError(SubmitError):
    """The job server has never heard of the job."""


def user_token() -> str | None:
    """The user's token for Rays that others run, from where Ray itself looks for it, in Ray's order."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    return path.read_text().strip() if path.is_file() else None


def _as_job(item: Mapping[str, Any]) -> RayJob:
    return RayJob(
        item["submission_id"], item["status"], item.get("message") or "", item.get("driver_exit_code")
    )
