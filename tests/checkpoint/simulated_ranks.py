"""Many ranks in one process: writers one after the other, readers as threads that agree through a barrier."""

import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmscale.checkpoint.agreement import Agreement
from llmscale.checkpoint.epochs import claim_epoch, read_epochs
from llmscale.checkpoint.loader import Accept, Loaded, load_first_sound
from llmscale.checkpoint.shards import HostImage, tensor_entries
from llmscale.checkpoint.store import Store
from llmscale.checkpoint.writer import SaveRequest, commit_parts, write_part
from tests.checkpoint.checkpoint_layouts import RankedPieces


def save(folder: Path, step: int, layout: RankedPieces, epoch: int | None = None) -> Path:
    """A whole save by as many ranks as the layout has, in this thread."""
    store = Store(folder)
    if epoch is None:
        epoch = read_epochs(folder).newest or claim_epoch(folder, 0)
    save_id = uuid.uuid4().hex
    store.begin(step, save_id)
    ranks = layout.ranks
    requests = [
        SaveRequest(
            store, step, save_id, epoch, rank, len(ranks), {"step": step}, {"layout": len(ranks)}, 5.0
        )
        for rank in range(len(ranks))
    ]
    for request, pieces in zip(requests, ranks):
        image = HostImage(pieces)
        image.copy_from(pieces)
        write_part(request, image, tensor_entries(pieces, request.rank))
    commit_parts(requests[0])
    return store.committed(step)


@dataclass
class Board:
    """What the threads of a simulated world share."""

    barrier: threading.Barrier
    values: dict[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class ThreadAgreement(Agreement):
    """Agreement between threads, by the same JSON bytes."""

    board: Board = field(default_factory=lambda: Board(threading.Barrier(1)))

    def __post_init__(self) -> None:
        """No process group needed."""

    def _gather(self, mine: Any) -> list[Any]:
        self.board.values[self.rank] = json.dumps(mine).encode()
        self.board.barrier.wait(10)
        values = [json.loads(self.board.values[rank]) for rank in range(self.world_size)]
        self.board.barrier.wait(10)
        return values

    def _broadcast(self, value: Any) -> Any:
        if self.rank == 0:
            self.board.values[0] = json.dumps(value).encode()
        self.board.barrier.wait(10)
        data = self.board.values[0]
        self.board.barrier.wait(10)
        return json.loads(data)


def load(
    folder: Path, layout: RankedPieces, accept: Accept | None = None
) -> list[tuple[Loaded | None, list[str]]]:
    """Load the newest sound checkpoint on all ranks of a layout; what each of them returned.

    Raises what the ranks raise, after proving that they all raise the same.
    """
    world = len(layout.ranks)
    board = Board(threading.Barrier(world))
    candidates = Store(folder).checkpoints()[::-1]

    def rank_main(rank: int) -> tuple[Loaded | None, list[str]]:
        pieces = layout.ranks[rank]
        agreement = ThreadAgreement(rank, world, None, board)
        return load_first_sound(agreement, candidates if rank == 0 else [], pieces, HostImage(pieces), accept)

    with ThreadPoolExecutor(world) as pool:
        futures = [pool.submit(rank_main, rank) for rank in range(world)]
    errors = [future.exception() for future in futures]
    assert len({str(error) for error in errors}) == 1, errors
    if errors[0] is not None:
        raise errors[0]
    return [future.result() for future in futures]
