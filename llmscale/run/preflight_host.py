"""The first node's part of the preflight: hears all nodes, brings them together, and judges."""

import json
import secrets
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from llmscale.control.preflight import Expected, Findings, Verdict, judge
from llmscale.runtime.link import LinkServer
from llmscale.runtime.rendezvous import open_store

FOLDER = ".preflight"
CANARY = "canary"
POLL_SECONDS = 0.02
JOIN_SHARE = 0.6
"""Part of the time that nodes have to come; the rest is for measuring links."""
LAST_SECONDS = 3.0
"""Before the end of the time: what is not measured by then is left out."""
FAREWELL_SECONDS = 2.0


def meeting_folder(run_folder: Path, job: str, attempt: str) -> Path:
    """Where the nodes of one attempt leave signs for each other."""
    return run_folder / FOLDER / f"{job}-{attempt}"


def sign(index: int) -> str:
    """Name of the file by which a node says that it is there."""
    return f"node-{index}"


class Host(threading.Thread):
    """Runs beside the first node's own look at itself; `verdict` is there when `join` returns."""

    def __init__(
        self,
        server: LinkServer,
        address: str,
        folder: Path,
        names: Mapping[int, str],
        gpus: int,
        seconds: float,
    ) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.address = address
        self.folder = folder
        self.names = dict(names)
        self.gpus = gpus
        self.nonce = secrets.token_hex(16)
        self.began = time.monotonic()
        self.seconds = seconds
        self.peers: dict[int, int] = {}
        self.found: dict[int, Findings] = {}
        self.store: object | None = None
        self.met = False
        self.done: set[int] = set()
        self.verdict: Verdict | None = None

    def run(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / CANARY).write_text(self.nonce)
        while not self._is_over():
            self._hear()
            if not self.met and (len(self.found) == len(self.names) or self._time_left(JOIN_SHARE) <= 0):
                self._bring_together()
        self.verdict = judge(self._expected(), self.found)
        self._say_farewell()

    def _time_left(self, share: float = 1.0) -> float:
        return self.began + share * self.seconds - time.monotonic()

    def _is_over(self) -> bool:
        complete = self.met and self.done >= self.found.keys()
        return (complete and self._answers_read()) or self._time_left() < LAST_SECONDS

    def _answers_read(self) -> bool:
        """Shared folders take a moment: as long as there is time, answers to the canary are waited for."""
        return self._canaries() >= {index for index, one in self.found.items() if one.sees_canary}

    def _hear(self) -> None:
        for peer, line in self.server.poll(time.monotonic(), POLL_SECONDS):
            message = json.loads(line)
            index = message["index"]
            self.peers[index] = peer
            self.names[index] = message["name"]
            if message["kind"] == "ping":
                answer = {"kind": "pong", "sent": message["sent"], "clock": time.time(), "nonce": self.nonce}
                self.server.send(peer, json.dumps(answer))
            else:
                fields = message["findings"]
                self.found[index] = Findings(**{**fields, "trouble": tuple(fields["trouble"])})
                if message["done"]:
                    self.done.add(index)

    def _bring_together(self) -> None:
        """Have all nodes that are there measure their links."""
        self.met = True
        self.store, port = open_store(self.address)
        ranks = {index: rank for rank, index in enumerate(sorted(self.found))}
        for index, rank in ranks.items():
            world = {
                "address": self.address,
                "port": port,
                "rank": rank,
                "size": len(ranks),
                "seconds": max(1.0, self._time_left() - 2 * LAST_SECONDS),
            }
            self.server.send(self.peers[index], json.dumps({"kind": "world", "world": world}))

    def _expected(self) -> Expected:
        began = frozenset(index for index in self.names if (self.folder / sign(index)).exists())
        return Expected(self.names, began, frozenset(self._canaries()), self.gpus)

    def _canaries(self) -> set[int]:
        return {index for index in self.names if self._answer(index) == self.nonce}

    def _answer(self, index: int) -> str:
        path = self.folder / f"{sign(index)}.answer"
        return path.read_text() if path.exists() else ""

    def _say_farewell(self) -> None:
        message = json.dumps({"kind": "verdict", "verdict": asdict(self.verdict)})  # pyright: ignore[reportArgumentType]
        for peer in self.peers.values():
            self.server.send(peer, message)
        deadline = time.monotonic() + FAREWELL_SECONDS
        while self.server.peers and time.monotonic() < deadline:
            self.server.poll(time.monotonic(), POLL_SECONDS)
        self.server.close()
        shutil.rmtree(self.folder.parent, ignore_errors=True)
