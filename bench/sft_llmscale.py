"""Contender: llmscale's engine, with the loader that a run of `task: sft` has."""

import tempfile
from pathlib import Path

import torch

from bench.sft_workload import TuningWorkload, examples
from bench.tuning import Clock, config_of
from llmscale.data.blend import Blend
from llmscale.data.example_rows import ExampleRows
from llmscale.data.examples import ExampleSet, write_examples
from llmscale.data.loader import BatchSource
from llmscale.engine.engine import Engine
from llmscale.objectives.causal_lm import CausalLM
from llmscale.parallel.distributed import connect, disconnect
from llmscale.parallel.environment import RankEnvironment
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World


def main() -> None:
    workload = TuningWorkload.from_command_line()
    torch.set_num_threads(workload.threads)
    environment = RankEnvironment.from_variables()
    config = config_of(workload, workload.sequences, task="sft", sft={"packing": workload.packing})
    world = World(Layout.of(config.parallel, environment.world_size), connect(environment))
    engine = Engine(config, world, workload.vocabulary_size, CausalLM())
    clock = Clock(workload.seconds)
    with tempfile.TemporaryDirectory() as folder:
        write_examples(examples(workload), Path(folder) / "examples", {})
        rows = ExampleRows(
            ExampleSet(Path(folder) / "examples"), workload.sequence_length, "1", 0, workload.packing
        )
        with BatchSource(config, "train", 0, 1, Blend([rows], [1.0])) as source:
            consumed, done = 0, False
            while not done:
                result = engine.step(source.step_batches(consumed, workload.sequences))
                consumed += workload.sequences
                done = clock.step(result.loss, {"tokens": result.tokens})
    clock.report()
    disconnect()


if __name__ == "__main__":
    main()
