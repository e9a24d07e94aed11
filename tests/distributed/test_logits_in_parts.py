"""Logits that are left to the loss, which makes them a few tokens at a time: losses, gradients and weights
are those of whole logits on one rank."""

from dataclasses import replace
from functools import cache
from typing import Any
from unittest import mock

import pytest
import torch
from llmscale_kernels import linear_cross_entropy as kernel
from torch import Tensor

from llmscale.engine.engine import Engine
from llmscale.model import language_model
from llmscale.model.logprobs import token_losses_and_entropies
from llmscale.objectives.causal_lm import CausalLM
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from llmscale.plan import activations
from tests.distributed.parity import TOLERANCES, Run, compare, microbatches, parity_config, train
from tests.ranks import run_ranks

STEPS = 3
LAYOUTS: dict[str, dict[str, Any]] = {
    "one rank": {},
    "tensor 2": {"tensor": 2},
    "tensor 2, sequence, pipeline 2": {"tensor": 2, "sequence": True, "pipeline": 2},
    "data 2, zero 2": {"data": 2, "zero": 2},
    "tensor 2, sequence, data 2": {"tensor": 2, "sequence": True, "data": 2},
}


def refused(*_: object, **__: object) -> Tensor:
    raise AssertionError("whole logits")


IN_PARTS = {
    "llmscale.model.language_model.LARGEST_LOGITS": 0,
    "llmscale_kernels.linear_cross_entropy.ELEMENTS_AT_ONCE": 0,
    "llmscale_kernels.linear_cross_entropy.LEAST_ROWS": 10,
    "llmscale.model.logprobs.cross_entropy": refused,
}


@cache
def with_whole_logits(tied: bool) -> Run:
    return train(parity_config(precision="fp64", tied=tied), steps=STEPS)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tied", [False, True])
def test_same_training(layout: str, tied: bool) -> None:
    config = parity_config(precision="fp64", tied=tied, **LAYOUTS[layout])
    compare(train(config, IN_PARTS, STEPS), with_whole_logits(tied), TOLERANCES["fp64"])


def test_with_zero_3_logits_are_whole() -> None:
    config = parity_config(precision="fp64", zero=3, data=2)
    some = {name: value for name, value in IN_PARTS.items() if value is not refused}
    compare(train(config, some, STEPS), with_whole_logits(False), TOLERANCES["fp64"])


def told(_: int, largest: int) -> tuple[Tensor, ...]:
    """Losses, entropies and the gradient of both, of some tokens of a microbatch."""
    config = parity_config(precision="fp64", tied=True)
    world = World(Layout.of(config.parallel, 1), torch.device("cpu"))
    engine = Engine(config, world, config.model.vocabulary_size or 0, CausalLM())
    (batch,) = microbatches(config, world, 0)[:1]
    counted_C = torch.arange(8, 24)
    batch = replace(batch, counted_C=counted_C)
    (chunk,) = engine.chunks
    labels_C1 = batch.labels_BS.T.flatten()[counted_C][:, None]
    with world.active(), mock.patch.object(language_model, "LARGEST_LOGITS", largest):
        output = chunk(batch.tokens_BS, batch.position_ids_BS, None, batch.counted_C)
        found = token_losses_and_entropies(chunk, output, labels_C1, 0.7)
        weights_C1 = torch.linspace(-1, 1, len(counted_C))[:, None]
        (found[0].sum() + (found[1] * weights_C1).sum()).backward()
    gradient = chunk.embedding.word_embeddings.weight.grad
    assert gradient is not None
    return (*(one.detach() for one in found), gradient, torch.tensor(output.shape))


def test_entropies_too() -> None:
    whole, parts = run_ranks(1, told, 1 << 40)[0], run_ranks(1, told, 0)[0]
    assert whole[-1].tolist() == [16, 1, 1024] and parts[-1].tolist() == [16, 1, 64]
    for one, other in zip(parts[:-1], whole[:-1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_the_plan_knows_how_many_there_are() -> None:
    """It reads no torch, and so has the numbers of its own."""
    assert (activations.FEW_LOGITS, activations.FEW_TOKENS) == (kernel.ELEMENTS_AT_ONCE, kernel.LEAST_ROWS)
    small, large = (
        parity_config().model_copy(
            update={"train": parity_config().train.model_copy(update={"sequence_length": length})}
        )
        for length in (1 << 9, 1 << 10)
    )
    vocabulary = 128 * 1024
    one, two = (activations.logits_bytes(config, vocabulary, 4) for config in (small, large))
    assert one > vocabulary * 512 * 4 > two
