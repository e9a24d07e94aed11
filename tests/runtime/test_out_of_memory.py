"""Deaths for want of memory are told from other deaths."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmscale.control.messages import Failure
from llmscale.runtime.failure import find_failure
from llmscale.runtime.out_of_memory import kernel_kills, speaks_of_memory, told_apart
from llmscale.runtime.rank_variables import prepare_environment
from llmscale.runtime.ranks import kill_ranks, start_rank, start_server
from tests.runtime import hungry_ranks


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    prepare_environment(processes=1, threads=1)
    start_server(["tests.runtime.hungry_ranks"])


def failure_of(entry: Callable[..., int], folder: Path, *arguments: object) -> Failure:
    before = kernel_kills()
    rank = start_rank(0, entry, arguments, {"RANK": "0"}, folder / "rank-0.log")
    try:
        deadline = time.monotonic() + 60
        while (failure := find_failure([rank], 75)) is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        kill_ranks([rank])
    return told_apart(failure, before)


@pytest.mark.parametrize("entry", [hungry_ranks.ask_torch, hungry_ranks.ask_python])
def test_memory_that_a_rank_cannot_get(tmp_path: Path, entry: Callable[[], int]) -> None:
    failure = failure_of(entry, tmp_path)
    assert failure.kind == "out of memory", failure
    for way_out in ("train.micro_batch_size", "train.recompute", "llmscale plan"):
        assert way_out in failure.cause


@pytest.mark.parametrize(
    ("entry", "kind"), [(hungry_ranks.be_killed, "signal"), (hungry_ranks.crash, "error")]
)
def test_other_deaths_stay_what_they_are(tmp_path: Path, entry: Callable[[], int], kind: str) -> None:
    failure = failure_of(entry, tmp_path)
    assert failure.kind == kind and "micro_batch_size" not in failure.cause


@contextlib.contextmanager
def cgroup_of(limit: int) -> Iterator[Path]:
    """A cgroup of version 1 or 2 with little memory."""
    base = Path("/sys/fs/cgroup")
    old = (base / "memory").is_dir()
    group = (base / "memory" if old else base) / "llmscale-test"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(limit))
    except OSError as error:
        pytest.skip(f"cgroups cannot be made here: {error}")
    try:
        yield group
    finally:
        group.rmdir()


@pytest.mark.soak
def test_a_kill_by_the_kernel(tmp_path: Path) -> None:
    with cgroup_of(2**28) as group:
        failure = failure_of(hungry_ranks.eat_in_cgroup, tmp_path, str(group))
    assert failure.kind == "out of memory" and failure.cause.startswith("killed by SIGKILL"), failure


@pytest.mark.parametrize(
    ("own", "counter"),
    [
        ("0::/job/step\n", "job/step/memory.events"),
        ("0::/job/step\n", "job/memory.events"),
        ("4:memory:/job\n3:cpu:/\n", "memory/job/memory.oom_control"),
        ("4:memory:/not/seen/here\n", "memory/memory.oom_control"),
    ],
)
def test_kills_are_counted_in_either_version(tmp_path: Path, own: str, counter: str) -> None:
    (tmp_path / "own").write_text(own)
    path = tmp_path / "root" / counter
    path.parent.mkdir(parents=True)
    places = tmp_path / "own", tmp_path / "root", tmp_path / "no vmstat"
    counts = []
    for kills in (0, 1, 3):
        path.write_text(f"low 0\noom 7\noom_kill {kills}\noom_group_kill 0\n")
        counts.append(kernel_kills(*places))
    assert counts == [0, 1, 3]


@pytest.mark.parametrize(
    ("line", "memory"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", True),
        ("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried", True),
        ("MemoryError", True),
        ("terminate called after throwing an instance of 'std::bad_alloc'", True),
        ("OSError: [Errno 12] Cannot allocate memory", True),
        ("ValueError: the memory of this is long", False),
        ("  memory_bytes: 123", False),
    ],
)
def test_words_about_memory(line: str, memory: bool) -> None:
    assert speaks_of_memory(["step 3", line]) is memory
