"""Two agents, as on two nodes: one world, and a dead rank on one restarts the ranks of both."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from llmscale.runtime.events import read_events

PROGRAM = (
    "import sys, pathlib, agent_entries\n"
    "from llmscale.control.coordinator import Policy\n"
    "from llmscale.parallel.environment import NodeEnvironment\n"
    "from llmscale.runtime.agent import Agent, Job, Watcher\n"
    "from llmscale.runtime.ranks import start_server\n"
    "start_server(['agent_entries'])\n"
    "folder, entry = pathlib.Path(sys.argv[1]), getattr(agent_entries, sys.argv[2])\n"
    "job = Job(folder, entry, (folder,), Policy(2, frozenset({2}), 2, 3), lambda: None)\n"
    "sys.exit(Agent(job, Watcher(), NodeEnvironment.from_variables()).run_job())\n"
)


def run_nodes(folder: Path, entry: str) -> list[int]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "LLMSCALE_NODES": "2",
        "PYTHONPATH": str(Path(__file__).parent),
        "LLMSCALE_RENDEZVOUS": f"127.0.0.1:{port}",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    command = [sys.executable, "-c", PROGRAM, str(folder), entry]
    agents = [subprocess.Popen(command, env={**environment, "LLMSCALE_NODE": str(node)}) for node in range(2)]
    try:
        return [agent.wait(60) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()


def test_two_agents_make_one_world(tmp_path: Path) -> None:
    assert run_nodes(tmp_path, "finish") == [0, 0]
    places = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(4)]
    assert [(place["rank"], place["node_rank"], place["local_rank"]) for place in places] == [
        *((0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1)),
    ]
    assert {place["world_size"] for place in places} == {4}
    assert len({place["master_port"] for place in places}) == 1


def test_dead_rank_restarts_both_nodes(tmp_path: Path) -> None:
    (tmp_path / "seed").write_text("0")
    assert run_nodes(tmp_path, "die_on_first_start") == [0, 0]
    assert [e.details["rank"] for e in read_events(tmp_path) if e.kind == "failed"] == [3]
