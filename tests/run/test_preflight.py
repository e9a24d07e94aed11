"""The preflight with real processes as nodes, over TCP and a folder, with a fault planted in one of them."""

import json
import time
from pathlib import Path

import pytest

from llmscale.runtime.events import read_events
from llmscale.runtime.rank_variables import prepare_environment
from llmscale.runtime.ranks import start_server
from tests.run.preflight_nodes import SECONDS, Node, Preflight, free_port


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    prepare_environment(processes=1, threads=1)
    start_server(["tests.run.preflight_nodes"])


def preflight(tmp_path: Path, *faults: str, gpus: int = 0) -> Preflight:
    folder = tmp_path / "run"
    folder.mkdir()
    return Preflight(folder, [Node(fault) for fault in faults], free_port(), gpus)


def result(checked: Preflight) -> dict[str, dict[str, list[str]]]:
    return json.loads((checked.folder / "preflight.json").read_text())


def test_fit_nodes_pass(tmp_path: Path) -> None:
    checked = preflight(tmp_path, "", "", "")
    assert checked.run() == [0, 0, 0]
    found = result(checked)
    assert found["bad_nodes"] == {} and found["checked"] == ["node0", "node1", "node2"]
    assert all(one["link_bytes"] > 0 and one["matmul_flops"] > 0 for one in found["findings"].values())
    assert not (checked.folder / "bad_nodes.txt").exists()
    assert read_events(checked.folder) == []
    assert "node2" in checked.nodes[0].output and "fit" in checked.nodes[0].output
    assert sorted(path.name for path in checked.folder.iterdir()) == [".token", "preflight.json"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("other folder", "it is not the same folder"),
        ("clock", "its clock is 100.0 s ahead of the first node's"),
        ("other version", "torch is 1.0"),
        ("slow link", "its link carries"),
    ],
)
def test_the_bad_node_is_named(tmp_path: Path, fault: str, reason: str) -> None:
    checked = preflight(tmp_path, "", "", "", fault)
    assert checked.run() == [1, 1, 1, 1]
    bad = result(checked)["bad_nodes"]
    assert list(bad) == ["node3"] and any(reason in text for text in bad["node3"]), bad
    assert (checked.folder / "bad_nodes.txt").read_text() == "node3\n"
    (event,) = read_events(checked.folder)
    assert event.kind == "preflight_failed" and reason in event.details["cause"]
    assert event.details["bad_nodes"] == bad


def test_a_node_that_does_not_come_is_named_in_time(tmp_path: Path) -> None:
    checked = preflight(tmp_path, "", "absent", "")
    began = time.monotonic()
    assert checked.run() == [1, 1]
    assert time.monotonic() - began < SECONDS + 5
    assert result(checked)["bad_nodes"] == {
        "node1": ["has given no sign, neither over TCP nor in the run folder"]
    }


def test_a_single_node_with_too_few_gpus(tmp_path: Path) -> None:
    checked = preflight(tmp_path, "gpus", gpus=8)
    assert checked.run() == [1]
    assert result(checked)["bad_nodes"] == {"node0": ["2 GPUs work, 8 are asked for"]}
    assert not (checked.folder / "bad_nodes.txt").exists(), "nothing is left without the only node"
