"""The rank processes of this node, as the agent's state machine wants them."""

import shutil
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from llmscale.control.exit_codes import EXIT_SAVED
from llmscale.control.messages import Evidence, Failure, Place
from llmscale.control.watchdog import Beat
from llmscale.runtime.beats import VARIABLE as BEATS_VARIABLE
from llmscale.runtime.beats import BeatReader, make_beats_folder
from llmscale.runtime.failure import find_failure
from llmscale.runtime.out_of_memory import kernel_kills, told_apart
from llmscale.runtime.ranks import Entry, RankProcess, join_ranks, kill_ranks, start_rank
from llmscale.runtime.rendezvous import LOOPBACK, interface_of, open_store
from llmscale.runtime.stacks import collect_evidence

LEAVE_SECONDS = 30.0
"""How long a rank that is done may take to close its connections."""


@dataclass
class LocalRanks:
    """Starts, watches and ends them; every start has a store of its own."""

    run_folder: Path
    entry: Entry
    arguments: tuple[object, ...]
    address: str
    """Of this node, for the other nodes."""
    interface: str | None = None
    """Network interface between the nodes; None: the one that has the address."""
    ranks: list[RankProcess] = field(default_factory=list)
    store: TCPStore | None = None
    readers: dict[int, BeatReader] = field(default_factory=dict)
    look: "Look | None" = None

    def __post_init__(self) -> None:
        self.beats_folder = make_beats_folder()
        self.kills_before = 0

    def open_store(self) -> int:
        self.store, port = open_store(self.address)
        return port

    def start(self, place: Place) -> None:
        self._close_readers()
        self.kills_before = kernel_kills()
        mine = range(place.first_rank, place.first_rank + place.processes)
        self.readers = {rank: BeatReader(self.beats_folder, rank) for rank in mine}
        self.ranks = [
            start_rank(
                rank,
                self.entry,
                self.arguments,
                self._variables(place, rank),
                self.run_folder / "logs" / f"rank-{rank}.log",
            )
            for rank in mine
        ]

    def kill(self) -> None:
        kill_ranks(self.ranks)
        self.ranks = []

    def ask_to_save(self) -> None:
        for rank in self.ranks:
            rank.send(signal.SIGTERM)

    def poll(self) -> Failure | dict[int, int] | None:
        failure = find_failure(self.ranks, EXIT_SAVED)
        if failure is not None:
            return told_apart(failure, self.kills_before)
        if not all(rank.ending is not None for rank in self.ranks):
            return None
        join_ranks(self.ranks, LEAVE_SECONDS)
        codes = {rank.rank: rank.ending.exit_code or 0 for rank in self.ranks if rank.ending}
        self.ranks = []
        return codes

    def beats(self) -> dict[int, Beat]:
        pids = {rank.rank: rank.pid for rank in self.ranks}
        return {rank: reader.read(pids.get(rank)) for rank, reader in self.readers.items()}

    def examine(self) -> None:
        steps = {rank: beat.step for rank, beat in self.beats().items()}
        self.look = Look(self.beats_folder, {rank.rank: rank.pid for rank in self.ranks}, steps)

    def evidence(self) -> tuple[Evidence, ...] | None:
        return self.look.found if self.look else ()

    def close(self) -> None:
        """End what is left, and leave nothing behind."""
        self.kill()
        self._close_readers()
        self.store = None
        shutil.rmtree(self.beats_folder, ignore_errors=True)

    def _close_readers(self) -> None:
        for reader in self.readers.values():
            reader.close()
        self.readers = {}

    def _variables(self, place: Place, rank: int) -> dict[str, str]:
        variables = {
            "RANK": rank,
            "LOCAL_RANK": rank - place.first_rank,
            "WORLD_SIZE": place.world_size,
            "LOCAL_WORLD_SIZE": place.processes,
            "GROUP_RANK": place.node_rank,
            "GROUP_WORLD_SIZE": place.nodes,
            "MASTER_ADDR": place.master_address,
            "MASTER_PORT": place.master_port,
            "TORCHELASTIC_RESTART_COUNT": place.restart_count,
            "TORCHELASTIC_USE_AGENT_STORE": True,
            BEATS_VARIABLE: self.beats_folder,
        }
        interface = self.interface or interface_of(LOOPBACK if place.nodes == 1 else self.address)
        variables |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
        return {name: str(value) for name, value in variables.items()}


class Look:
    """Looks at ranks in a thread of its own: the agent must go on reporting while ranks take their time."""

    def __init__(self, folder: Path, pids: Mapping[int, int], steps: Mapping[int, int]) -> None:
        self.found: tuple[Evidence, ...] | None = None
        self.thread = threading.Thread(target=self._look, args=(folder, pids, steps), daemon=True)
        self.thread.start()

    def _look(self, folder: Path, pids: Mapping[int, int], steps: Mapping[int, int]) -> None:
        self.found = collect_evidence(folder, pids, steps)
