"""Experiences as microbatches, and what is said of their tokens back in their order."""

from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from llmscale_kernels import attention

from llmscale.config.schema import Config
from llmscale.data.batch import Batch
from llmscale.engine.engine import Engine
from llmscale.model.language_model import LanguageModel
from llmscale.objectives.causal_lm import CausalLM
from llmscale.objectives.rl.told import token_figures
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from llmscale.rlhf import rows
from llmscale.rlhf.experience import Experience
from llmscale.rlhf.families import Family, families
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


def answers(prompts: int, each: int) -> list[Experience]:
    """Several to each prompt, which are of all lengths; some answers are of one token."""
    generator = np.random.default_rng(5)
    made: list[Experience] = []
    for number in range(prompts):
        prompt = generator.integers(0, VOCABULARY, number % 4 * 5 + 1)
        for place in range(each):
            answer = generator.integers(0, VOCABULARY, int(generator.integers(1, 12)))
            tokens = np.concatenate((prompt, answer)).astype(np.int32)
            learned = np.arange(len(tokens)) >= len(prompt)
            advantages = {"advantages": tokens.astype(np.float32) / 7}
            made.append(Experience(tokens, learned, number, place, 0, True, advantages))
    return made


def told(_: int, config: Config, made: list[Experience]) -> tuple[list[Any], list[Any], int] | None:
    world = World(Layout.of(config.parallel, config.world_size), torch.device("cpu"))
    engine = Engine(config, world, VOCABULARY, CausalLM())
    mine = made[world.coordinates.data :: world.layout.data]
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
    ((alone, signals, _),) = run_ranks(1, told, sft_config(True), expected)
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
        answers = [
            answer for answer in run_ranks(config.world_size, told, config, expected) if answer is not None
        ]
        assert len({batches for _, _, batches in answers}) == 1
        replicas = config.data_parallel
        for replica, (found, _, _) in enumerate(answers):
            for ours, theirs in zip(found, alone[replica::replicas], strict=True):
                np.testing.assert_allclose(ours, theirs, atol=2e-5)


def apart(experiences: Sequence[Experience], row_length: int, virtual_tokens: int) -> list[Family]:
    """As `families`, but nothing is shared."""
    lengths = [len(one.tokens_T) - 1 + virtual_tokens for one in experiences]
    return [Family([number], 0, length) for number, length in enumerate(lengths)]


def told_in_many_ways(rank: int, made: list[Experience]) -> tuple[Any, Any, Any]:
    """Prompts shared, by torch's attention; and each answer with a prompt of its own."""
    shared = told(rank, sft_config(True), made)
    with mock.patch.object(attention, "fits", lambda _: False):
        by_torch = told(rank, sft_config(True), made)
    with mock.patch.object(rows, "families", apart):
        return shared, by_torch, told(rank, sft_config(True), made)


def test_a_prompt_that_answers_share_is_as_if_each_had_its_own() -> None:
    made = answers(7, 6)
    ((shared, by_torch, alone),) = run_ranks(1, told_in_many_ways, made)
    for found in (shared, by_torch):
        for ours, theirs, one in zip(found[0], alone[0], made, strict=True):
            assert len(ours) == len(one.tokens_T)
            np.testing.assert_allclose(ours, theirs, atol=2e-5)
        assert found[1] == alone[1]
    assert shared[2] < alone[2], "fewer microbatches"
    ((split, *_),) = [x for x in run_ranks(4, told, sft_config(True, **LAYOUT), made) if x is not None]
    for ours, theirs in zip(split, alone[0], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


LAYOUT: dict[str, Any] = {"cluster": {"processes_per_node": 4}, "parallel": {"tensor": 2, "pipeline": 2}}


def test_families_fill_rows_and_have_everyone_once() -> None:
    made = answers(9, 7)
    found = families(made, ROW, 2)
    assert sorted(number for family in found for number in family.members) == list(range(len(made)))
    for family in found:
        one = made[family.members[0]]
        prompts = {made[number].tokens_T[made[number].learned_T.argmin() :][0] for number in family.members}
        own = sum(len(made[number].tokens_T) - 1 + 2 - family.shared for number in family.members)
        assert family.length == family.shared + own <= ROW
        assert family.shared == (
            len(one.tokens_T) - one.learned_T.sum() + 1 if len(family.members) > 1 else 0
        )
        assert len(prompts) == 1
    assert any(len(family.members) > 1 for family in found)
