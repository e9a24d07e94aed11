"""What each PEFT method trains, keeps in memory, stores and costs, beside full tuning of the same model.

python -m bench.peft [--quick] [--rounds N] [--threads N] [--output FOLDER]

One rank, one process: all engines live side by side and take their steps in turn, so that a slow minute of
the machine hits all. Steps are measured in processor time, which a busy machine does not stretch.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.rounds import free_port, machine, rank_variables, write_json
from llmscale.checkpoint.checkpointer import Checkpointer
from llmscale.config.presets import load_preset
from llmscale.config.schema import CheckpointSection, Config
from llmscale.data.batch import Batch
from llmscale.engine.engine import Engine
from llmscale.engine.trained import trained_parameters
from llmscale.model.language_model import LanguageModel
from llmscale.objectives.causal_lm import CausalLM
from llmscale.parallel.distributed import connect, disconnect
from llmscale.parallel.environment import RankEnvironment
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from llmscale.run.prepare_model import tune

SEQUENCES, LENGTH = 4, 256
LLAMA = load_preset("llama_6m").model_dump(exclude_unset=True)
GPT2 = {**LLAMA, "family": "gpt2"}
"""The same size; BitFit needs biases."""
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full tuning": (LLAMA, {}),
    "lora, rank 8": (LLAMA, {"method": "lora", "rank": 8, "alpha": 16}),
    "dora, rank 8": (LLAMA, {"method": "dora", "rank": 8, "alpha": 16}),
    "adapter, bottleneck 32": (LLAMA, {"method": "adapter", "bottleneck": 32}),
    "prefix_tuning, 20 tokens": (LLAMA, {"method": "prefix_tuning"}),
    "prompt_tuning, 20 tokens": (LLAMA, {"method": "prompt_tuning"}),
    "p_tuning, 20 tokens": (LLAMA, {"method": "p_tuning"}),
    "freeze, the last layer": (LLAMA, {"method": "freeze", "train": ["model.layers.3.*"]}),
    "full tuning (gpt2)": (GPT2, {}),
    "bitfit (gpt2)": (GPT2, {"method": "bitfit"}),
}


@dataclass
class Case:
    """One way to tune, at work."""

    engine: Engine
    batch: Batch
    seconds: list[float] = field(default_factory=list)
    """Processor time of each step that counts."""

    @classmethod
    def start(cls, model: dict[str, Any], peft: dict[str, Any]) -> "Case":
        config = config_of(model, peft)
        world = World(Layout(), torch.device("cpu"))

        def prepare(chunks: Sequence[LanguageModel]) -> None:
            tune(chunks, config.peft, config.train.seed)

        return cls(Engine(config, world, model["vocabulary_size"], CausalLM(), prepare), batch_of(config))

    def step(self) -> float:
        begin = time.process_time()
        self.engine.step([self.batch])
        return time.process_time() - begin

    def measure(self) -> dict[str, Any]:
        engine = self.engine
        declarations = [engine.declarations[name] for name in engine.parameters]
        return {
            "trained_parameters": trained_parameters(declarations, engine.world),
            "optimizer_bytes": optimizer_bytes(engine),
            "checkpoint_bytes": checkpoint_bytes(engine),
            "tokens_per_second": int(self.batch.loss_mask_BS.sum()) / statistics.median(self.seconds),
            "step_seconds": self.seconds,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one step each: does it run at all")
    parser.add_argument("--rounds", type=int, default=7, help="steps that are measured of each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    options = parser.parse_args()
    os.environ.update(rank_variables(0, 1, free_port(), options.threads))
    torch.set_num_threads(options.threads)
    connect(RankEnvironment.from_variables())
    results: dict[str, Any] = {"machine": machine(), "threads": options.threads}
    cases = {name: Case.start(*sections) for name, sections in CASES.items()}
    run_rounds(cases, 1 if options.quick else options.rounds)
    results["machine"]["load_after"] = os.getloadavg()[0]
    results["rows"] = compare({name: case.measure() for name, case in cases.items()})
    disconnect()
    write_json(options.output / "peft.json", results)
    report(results["rows"])


def config_of(model: dict[str, Any], peft: dict[str, Any]) -> Config:
    # Learned and rotary positions reach beyond a prefix.
    return Config.model_validate(
        {
            "model": {**model, "max_positions": 2 * LENGTH},
            "peft": peft,
            "train": {
                "steps": 1_000_000,
                "global_batch_size": SEQUENCES,
                "micro_batch_size": SEQUENCES,
                "sequence_length": LENGTH,
                "precision": "fp32",
            },
            "optimizer": {"schedule": "constant"},
        }
    )


def batch_of(config: Config) -> Batch:
    """Random tokens, after as many placeholders as the method wants; those are not learned."""
    generator = torch.Generator().manual_seed(1)
    virtual = config.peft.placeholders
    tokens = torch.randint(
        config.model.vocabulary_size or 0, (SEQUENCES, LENGTH + 1 - virtual), generator=generator
    )
    tokens = torch.cat(((-1 - torch.arange(virtual)).expand(SEQUENCES, -1), tokens), dim=1)
    labels = tokens[:, 1:]
    positions = torch.arange(LENGTH).expand(SEQUENCES, -1)
    return Batch(tokens[:, :-1].contiguous(), labels.clamp(min=0), (labels >= 0).float(), positions)


def run_rounds(cases: dict[str, Case], rounds: int) -> None:
    for case in cases.values():
        case.step()  # Not counted: Adam makes its moments.
    for number in range(rounds):
        for case in cases.values():
            case.seconds.append(case.step())
        print(f"round {number + 1}/{rounds}", flush=True)


def optimizer_bytes(engine: Engine) -> int:
    """Adam's moments; on one rank in full precision there are no other copies of the weights."""
    states = engine.deepspeed.optimizer.state.values()
    moments = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    return sum(moment.nbytes for moment in moments if moment.dim())


def checkpoint_bytes(engine: Engine) -> int:
    """On disk, weights and moments and all else."""
    options = CheckpointSection(asynchronous=False, on_error="stop")
    with tempfile.TemporaryDirectory() as folder:
        checkpointer = Checkpointer(Path(folder), 0, 1, options, engine.world.control_group)
        checkpointer.load_newest(engine.pieces_to_load())  # finds nothing, and makes the folder ready
        checkpointer.save(1, engine.pieces_to_save(), dict(engine.counters()))
        return sum(file.stat().st_size for file in Path(folder).glob("step-*/*"))


def compare(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Each beside the full tuning that stands above it."""
    rows: list[dict[str, Any]] = []
    full: dict[str, Any] = {}
    for name, measured in found.items():
        if name.startswith("full"):
            full = measured
        shares = {
            f"{key}_share": measured[key] / full[key]
            for key in ("trained_parameters", "checkpoint_bytes", "tokens_per_second")
        }
        rows.append({"name": name, **measured, **shares})
    return rows


def report(rows: list[dict[str, Any]]) -> None:
    headings = ("trained", "share", "optimizer", "checkpoint", "share", "speed")
    table = Table("method", *headings, title=f"{SEQUENCES} × {LENGTH} tokens a step, fp32, one rank")
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['trained_parameters']:,}",
            f"{row['trained_parameters_share']:.2%}",
            f"{row['optimizer_bytes']:,} B",
            f"{row['checkpoint_bytes']:,} B",
            f"{row['checkpoint_bytes_share']:.2%}",
            f"{row['tokens_per_second_share']:.2f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
