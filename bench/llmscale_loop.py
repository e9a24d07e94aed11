"""Contender: llmscale's engine, on one rank or as one of several (then started once a rank)."""

import torch

from bench.tuning import config_of
from bench.workload import Workload, batch, measure
from llmscale.config.schema import Config
from llmscale.data.batch import Batch
from llmscale.engine.engine import Engine
from llmscale.objectives.causal_lm import CausalLM
from llmscale.parallel.distributed import connect, disconnect
from llmscale.parallel.environment import RankEnvironment
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World


def main() -> None:
    workload = Workload.from_command_line()
    torch.set_num_threads(workload.threads)
    environment = RankEnvironment.from_variables()
    config = config_of(
        workload,
        workload.sequences,
        parallel=workload.parallel,
        cluster={"processes_per_node": workload.ranks},
    )
    device = connect(environment)
    world = World(Layout.of(config.parallel, environment.world_size), device)
    engine = Engine(config, world, workload.vocabulary_size, CausalLM())
    microbatches = own_microbatches(workload, config, world)
    measure(workload, lambda: engine.step(microbatches).loss)
    disconnect()


def own_microbatches(workload: Workload, config: Config, world: World) -> list[Batch]:
    """This rank's share of the batch, in microbatches."""
    tokens = batch(workload).chunk(config.data_parallel)[world.coordinates.data]
    positions = torch.arange(workload.sequence_length)
    return [
        Batch(
            tokens_BS=part[:, :-1].contiguous(),
            labels_BS=part[:, 1:].contiguous(),
            loss_mask_BS=torch.ones(len(part), workload.sequence_length),
            position_ids_BS=positions.expand(len(part), -1),
        )
        for part in tokens.split(workload.micro_batch_size)
    ]


if __name__ == "__main__":
    main()
