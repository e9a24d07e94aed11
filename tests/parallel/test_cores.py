"""Ranks on NUMA nodes, of machines that are described by files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmscale.parallel import cores

ALL = set(range(16))


def machine(folder: Path, *lists: str) -> Path:
    for number, cpulist in enumerate(lists):
        (folder / f"node{number}").mkdir()
        (folder / f"node{number}" / "cpulist").write_text(cpulist + "\n")
    (folder / "possible").write_text("0-1\n")
    return folder


def test_nodes_as_linux_describes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = machine(tmp_path, "0-3,8-11", "4-7,12-15", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: ALL)
    assert cores.numa_nodes(folder) == {0: {0, 1, 2, 3, 8, 9, 10, 11}, 1: {4, 5, 6, 7, 12, 13, 14, 15}}
    # A batch system has given some cores of one node only.
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5, 12})
    assert cores.numa_nodes(folder) == {1: {4, 5, 12}}
    assert cores.numa_nodes(tmp_path / "none") == {}


def test_this_machine_has_a_node() -> None:
    assert set().union(*cores.numa_nodes().values()) <= os.sched_getaffinity(0)


@pytest.mark.parametrize(
    "ranks, expected",
    [
        (1, [None]),
        (2, [0, 1]),
        (3, [None, None, None]),
        (4, [0, 0, 1, 1]),
        (8, [0, 0, 0, 0, 1, 1, 1, 1]),
    ],
)
def test_ranks_are_dealt_evenly(ranks: int, expected: list[int | None]) -> None:
    nodes = {0: {0, 1}, 1: {2, 3}}
    found = [cores.cores_of_rank(rank, ranks, nodes) for rank in range(ranks)]
    assert found == [None if node is None else nodes[node] for node in expected]


def test_one_node_or_an_unknown_place_binds_nobody() -> None:
    assert cores.cores_of_rank(0, 2, {0: {0, 1}}) is None
    assert cores.cores_of_rank(0, 2, {}) is None
    # Whoever started the ranks has not said how many there are on the machine.
    assert cores.cores_of_rank(1, 1, {0: {0}, 1: {1}}) is None


PROGRAM = """
import os, threading, torch
from llmscale.parallel import cores
from llmscale.parallel.environment import RankEnvironment

mine = sorted(os.sched_getaffinity(0))
halves = {0: set(mine[:1]), 1: set(mine[1:])}
cores.numa_nodes = lambda: halves
wait, bound = threading.Event(), []
earlier = threading.Thread(target=lambda: (wait.wait(), bound.append(os.sched_getaffinity(0))))
earlier.start()
second = RankEnvironment(rank=1, local_rank=1, world_size=2, local_world_size=2, master_port=1)
assert cores.use_cores(second, None, numa_binding=False) == max(1, len(mine) // 2)
assert os.sched_getaffinity(0) == set(mine)
assert cores.use_cores(second, None, numa_binding=True) == max(1, len(mine) // 2) == torch.get_num_threads()
wait.set()
earlier.join()
later = threading.Thread(target=lambda: bound.append(os.sched_getaffinity(0)))
later.start()
later.join()
assert os.sched_getaffinity(0) == halves[1] and bound == [halves[1]] * 2, bound
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot be divided")
def test_a_rank_is_bound_with_all_its_threads() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)


def test_the_node_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        pci_domain_id, pci_bus_id, pci_device_id = 0, 0xC1, 0

    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: Properties)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert cores._node_of_gpu(5, tmp_path) is None
    (tmp_path / "0000:c1:00.0").mkdir()
    told = tmp_path / "0000:c1:00.0" / "numa_node"
    told.write_text("1\n")
    assert cores._node_of_gpu(5, tmp_path) == 1
    told.write_text("-1\n")
    assert cores._node_of_gpu(5, tmp_path) is None
