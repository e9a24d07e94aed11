"""A process with a Ray of its own, in which tests run what needs one: Ray reads the environment when it is
imported, and ends processes of its own accord."""

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

from llmscale.rlhf.workers.cluster import connected
from llmscale.rlhf.workers.placement import PoolAsk
from llmscale.rlhf.workers.places import reserve
from llmscale.rlhf.workers.pool import Limits, Pool
from llmscale.rlhf.workers.pulse import Pulse, own_servers
from llmscale.rlhf.workers.ray_environment import prepare_ray_environment

CPUS = 4
OPENER = "tests.rlhf.simple_role:open_simple"

_kept = ExitStack()


@contextmanager
def process_with_ray() -> Iterator[ProcessPoolExecutor]:
    """Whose functions find a Ray of CPUS processors."""
    with mock.patch.dict(os.environ):
        prepare_ray_environment(False)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context, initializer=_connect) as process:
            process.submit(os.getpid).result()
            yield process


def _connect() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _kept.enter_context(connected(CPUS))


@contextmanager
def pool_of(processes: int) -> Iterator[tuple[Pool, "Listener"]]:
    """A pool with the role `simple`, and who hears its beats."""
    listener, pulse = Listener(), Pulse(own_servers())
    pulse.listener = listener.hear
    ask = PoolAsk("some", ("reference",), processes, 1, 0, "PACK")
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with tempfile.TemporaryDirectory() as folder:
        place = reserve([ask], 60.0)["some"]
        pool = Pool(ask, place, variables, Path(folder), Limits(60.0, 120.0, 120.0), pulse)
        try:
            pool.open("simple", OPENER, {"number": 5}).results()
            yield pool, listener
        finally:
            pool.close()


class Listener:
    """Counts beats."""

    def __init__(self) -> None:
        self.beats = 0
        self.waits = False

    def hear(self, waits: bool) -> None:
        self.beats += waits
        self.waits = waits


def run(process: ProcessPoolExecutor, function: Callable[[], None]) -> None:
    """`function` in the process; what it raises is raised here."""
    process.submit(function).result(timeout=300)
