"""Random numbers that depend on what they are for, never on what ran before.

At the start of every microbatch the generators are seeded from (seed, step, microbatch, place in the
layout). A resumed run therefore draws what the uninterrupted one would have drawn, and no generator
state has to be saved.
"""

import contextlib
import hashlib
from collections.abc import Iterator

import megatron.core.tensor_parallel.random as megatron_random
import torch


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from any parts, the same on every machine and version."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class RngTracker:
    """Takes the place of Megatron's CUDA tracker.

    `fork()` draws from this tensor rank's own stream (dropout of split activations); outside of it all
    tensor ranks draw alike (dropout of activations that each of them holds whole).
    """

    def __init__(self) -> None:
        self.states: dict[str, torch.Tensor] = {}

    def is_initialized(self) -> bool:
        return bool(self.states)

    def get_states(self) -> dict[str, torch.Tensor]:
        return dict(self.states)

    def set_states(self, states: dict[str, torch.Tensor]) -> None:
        self.states = dict(states)

    @contextlib.contextmanager
    def fork(self, name: str = "model-parallel-rng") -> Iterator[None]:
        if name not in self.states:
            raise KeyError(f"no random stream {name!r}: seed the world before the model draws from it")
        outer = _get_state()
        _set_state(self.states[name])
        try:
            yield
        finally:
            self.states[name] = _get_state()
            _set_state(outer)


def install(tracker: RngTracker) -> None:
    """Make Megatron's modules draw from `tracker`."""
    megatron_random._CUDA_RNG_STATE_TRACKER = tracker
    megatron_random._CUDA_RNG_STATE_TRACKER_INITIALIZED = True


def seed_all(tracker: RngTracker, shared_seed: int, own_seed: int) -> None:
    """Seed the shared stream (the default generator) and this rank's own one."""
    _seed(own_seed)
    tracker.states["model-parallel-rng"] = _get_state()
    _seed(shared_seed)


def _seed(seed: int) -> None:
    """As `torch.manual_seed`, which spends a millisecond on devices that are not there."""
    if torch.cuda.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@contextlib.contextmanager
def preserved(tracker: RngTracker) -> Iterator[None]:
    """Give every stream back as it was, whatever is drawn inside."""
    shared, own = _get_state(), tracker.get_states()
    cpu = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        _set_state(shared)
        tracker.set_states(own)


def _get_state() -> torch.Tensor:
    return torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.get_rng_state()


def _set_state(state: torch.Tensor) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(state)
    else:
        torch.set_rng_state(state)
