"""Experiences as microbatches, and what is said of their tokens back in their order."""

import numpy as np
import torch

from llmscale.config.schema import Config
from llmscale.data.batch import Batch
from llmscale.engine.engine import Engine
from llmscale.model.language_model import LanguageModel
from llmscale.objectives.causal_lm import CausalLM
from llmscale.objectives.rl.told import token_figures
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from llmscale.rlhf.experience import Experience
from llmscale.rlhf.rows import pack
from tests.distributed.tuning_examples import VOCABULARY, sft_config
from tests.ranks import run_ranks

ROW = 48


def experiences(count: int, seed: int) -> list[Experience]:
    generator = np.random.default_rng(seed)
    made: list[Experience] = []
    for number in range(count):
        length = int(generator.integers(3, ROW + 1))
        tokens = generator.integers(0, VOCABULARY, length).astype(np.int32)
        learned = np.arange(length) >= generator.integers(1, length)
        made.append(
            Experience(tokens, learned, number, 0, 0, True, {"advantages": tokens.astype(np.float32) / 7})
        )
    return made


def told(_: int, config: Config, count: int) -> tuple[list[list[float]], list[list[float]], int] | None:
    world = World(Layout.of(config.parallel, config.world_size), torch.device("cpu"))
    engine = Engine(config, world, VOCABULARY, CausalLM())
    mine = experiences(count, 3)[world.coordinates.data :: world.layout.data]
    packed = pack(mine, ROW, 2, world)

    def tell(chunk: LanguageModel, output: torch.Tensor, batch: Batch) -> torch.Tensor:
        return token_figures(chunk, output, batch, 1.0).log_probabilities_BS

    found = engine.ask(packed.batches, tell)
    if not world.is_last_stage or world.coordinates.tensor:
        return None
    signals = packed.of_experiences(
        [batch.signals["advantages"] * batch.loss_mask_BS for batch in packed.batches]
    )
    log_probabilities = packed.of_experiences(found)
    return [one.tolist() for one in log_probabilities], [one.tolist() for one in signals], len(packed.batches)


def test_what_is_said_of_tokens_comes_back_under_every_layout() -> None:
    """A replica with fewer answers has as many microbatches; each answer is told what it is told alone."""
    expected = experiences(13, 3)
    ((alone, signals, _),) = run_ranks(1, told, sft_config(True), 13)
    for one, log_probabilities, advantages in zip(expected, alone, signals, strict=True):
        assert len(log_probabilities) == len(one.tokens_T)
        np.testing.assert_allclose(
            advantages, np.where(one.learned_T, one.signals["advantages"], 0), rtol=1e-6
        )
        assert all((value < 0) == bool(learned) for value, learned in zip(log_probabilities, one.learned_T))
    layouts = (
        {"cluster": {"processes_per_node": 2}, "zero": {"stage": 3}},
        {"cluster": {"processes_per_node": 4}, "parallel": {"tensor": 2, "pipeline": 2}},
    )
    for layout in layouts:
        config = sft_config(True, **layout)
        answers = [answer for answer in run_ranks(config.world_size, told, config, 13) if answer is not None]
        assert len({batches for _, _, batches in answers}) == 1
        replicas = config.data_parallel
        for replica, (found, _, _) in enumerate(answers):
            for ours, theirs in zip(found, alone[replica::replicas], strict=True):
                np.testing.assert_allclose(ours, theirs, atol=2e-5)
