"""Nodes of a preflight as processes of this machine, each with a fault planted or none."""

import contextlib
import io
import os
import shutil
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmscale.config.load import load_config
from llmscale.config.schema import Config
from llmscale.parallel.environment import NodeEnvironment
from llmscale.run import preflight_measure
from llmscale.run.preflight import Probes, check_node
from llmscale.run.preflight_measure import Measurement
from llmscale.runtime.link import TOKEN_NAME, read_token
from llmscale.runtime.ranks import CONTEXT

SECONDS = 8.0


class OtherVersion(Measurement):
    def run(self) -> None:
        seen = preflight_measure.versions
        preflight_measure.versions = lambda package: {**seen(package), "torch": "1.0"}
        super().run()


class SlowLink(Measurement):
    def run(self) -> None:
        quick = preflight_measure._exchange

        def slow(partner: int, outgoing: Any, incoming: Any) -> None:
            time.sleep(0.2 if len(outgoing) > 1 else 0.0)
            quick(partner, outgoing, incoming)

        preflight_measure._exchange = slow
        super().run()


class TwoGpus(Measurement):
    def run(self) -> None:
        look = preflight_measure.look_at_node

        def with_gpus(package: Path) -> preflight_measure.Local:
            local = look(package)
            local.devices = 2
            return local

        preflight_measure.look_at_node = with_gpus
        super().run()


@dataclass
class Node:
    """What is different about one node."""

    fault: str = ""
    code: int | None = None
    output: str = ""


@dataclass
class Preflight:
    folder: Path
    nodes: list[Node]
    port: int
    gpus: int = 0
    names: dict[str, str] = field(default_factory=dict)

    def run(self) -> list[int]:
        """Exit code of every node that is there."""
        read_token(self.folder)
        results = CONTEXT.SimpleQueue()
        processes = [
            CONTEXT.Process(target=_node, args=(self, index, results), daemon=True)
            for index, node in enumerate(self.nodes)
            if node.fault != "absent"
        ]
        for process in processes:
            process.start()
        for _ in processes:
            index, code, output = results.get()
            self.nodes[index].code, self.nodes[index].output = code, output
        for process in processes:
            process.join()
        return [node.code for node in self.nodes if node.code is not None]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _node(preflight: Preflight, index: int, results: Any) -> None:
    fault = preflight.nodes[index].fault
    os.environ["SLURMD_NODENAME"] = f"node{index}"
    os.environ["SLURM_JOB_NODELIST"] = f"node[0-{len(preflight.nodes) - 1}]"
    folder = preflight.folder
    if fault == "other folder":
        folder = folder.with_name("elsewhere")
        folder.mkdir()
        shutil.copy(preflight.folder / TOKEN_NAME, folder)
    measurements = {
        "other version": OtherVersion,
        "slow link": SlowLink,
        "gpus": TwoGpus,
    }
    probes = Probes(
        clock=(lambda: time.time() + 100) if fault == "clock" else time.time,
        measurement=measurements.get(fault, Measurement),
    )
    environment = NodeEnvironment(
        index, len(preflight.nodes), "127.0.0.1", (preflight.port,), index == 0, "7"
    )
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = check_node(folder, _config(preflight), environment, SECONDS, probes)
    results.put((index, code, output.getvalue()))


def _config(preflight: Preflight) -> Config:
    path = Path(__file__).parents[2] / "configs" / "pretrain" / "tiny.yaml"
    config = load_config(path, [])
    cluster = config.cluster.model_copy(update={"gpus_per_node": preflight.gpus})
    return config.model_copy(update={"cluster": cluster})
