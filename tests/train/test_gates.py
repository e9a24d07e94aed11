"""A run with PEFT that trains what it should not, or nothing where it should, ends within two steps and says
which tensor it is: planted mistakes, each under one rank and under layouts that could hide it."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from llmscale.config.schema import Config
from llmscale.config.tuning import PeftSection
from llmscale.engine.engine import Engine
from llmscale.model.language_model import LanguageModel
from llmscale.model.peft.adapter import Adapter
from llmscale.model.peft.lora import LoraUpdate
from llmscale.model.peft.targets import Linear
from llmscale.objectives.table import objective_of
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from llmscale.run.prepare_model import tune
from llmscale.train.gates import TuningFailed, TuningGate
from tests.distributed.parity import microbatches, parity_config, randomise_base
from tests.ranks import run_ranks

LORA: dict[str, Any] = {"method": "lora", "rank": 2, "target_modules": ["*.3.self_attn.o_proj"]}
O_PROJ = "model.layers.3.self_attn.o_proj"
A = f"base_model.model.{O_PROJ}.lora_A.weight"


def moves_base(
    linear: Linear, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor | None]
) -> tuple[Tensor, Tensor | None]:
    """The update is merged into the base at each forward, a little: in the place of LoRA's hook."""
    assert isinstance(linear.lora, LoraUpdate)
    with torch.no_grad():
        getattr(linear.weight, "ds_tensor", linear.weight).view(-1)[0] += 1e-3
    return linear.lora(inputs[0], output[0], linear), output[1]


def zeros(_seed: int, region: Any, _limit: float) -> Tensor:
    """A and B both 0: neither ever gets a gradient."""
    return torch.zeros(region.box.size)


REDUCE = LoraUpdate.reduce


def without_gradient_to_A(update: LoraUpdate, input_SBI: Tensor) -> Tensor:
    return REDUCE(update, input_SBI).detach()


def deaf_adapter(adapter: Adapter, hidden_SBH: Tensor) -> Tensor:
    return hidden_SBH + 0 * adapter.up_HW.sum() + adapter.up_bias_H


def thaws_a_norm(chunks: Sequence[LanguageModel], options: PeftSection, seed: int) -> None:
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            parameter.requires_grad_(
                "layers.3" in name and name.endswith(("linear_proj.bias", "norm.weight"))
            )


def layout_config(layout: dict[str, Any], peft: dict[str, Any], family: str = "llama") -> Config:
    return parity_config(family, peft=peft, **layout)


def said_rank(_: int, config: Config, patches: dict[str, Any]) -> str | None:
    """What the gate says on this rank; None where it lets two steps pass."""
    with ExitStack() as stack:
        for name, replacement in patches.items():
            stack.enter_context(mock.patch(name, replacement))
        world = World(Layout.of(config.parallel, config.world_size), torch.device("cpu"))
        prepare = partial(plain_peft, config=config)
        engine = Engine(config, world, config.model.vocabulary_size or 0, objective_of(config), prepare)
        try:
            gate = TuningGate(engine)
            for step in range(2):
                engine.step(microbatches(config, world, step))
                gate.after_step(step + 1)
        except TuningFailed as error:
            return str(error)
        finally:
            engine.close()
    return None


def plain_peft(chunks: Sequence[LanguageModel], config: Config) -> None:
    """As in a run: B begins at 0."""
    randomise_base(chunks)
    tune(chunks, config.peft, config.train.seed)


def said(config: Config, patches: dict[str, Any]) -> set[str]:
    return {words for words in run_ranks(config.world_size, said_rank, config, patches) if words is not None}


ONE, TP2, ZERO3 = {}, {"tensor": 2}, {"data": 2, "zero": 3}


@pytest.mark.parametrize("layout", [ONE, TP2, ZERO3], ids=["one", "tp2", "zero3"])
def test_a_base_that_moves(layout: dict[str, Any]) -> None:
    patches = {"llmscale.model.peft.lora._change_output": moves_base}
    assert said(layout_config(layout, LORA), patches) == {
        f"the first step changed {O_PROJ}.weight, which is frozen"
    }


@pytest.mark.parametrize("layout", [ONE, TP2, ZERO3], ids=["one", "tp2", "zero3"])
def test_an_update_that_cannot_begin(layout: dict[str, Any]) -> None:
    patches = {"llmscale.model.peft.lora.uniform_box": zeros}
    assert said(layout_config(layout, LORA), patches) == {
        f"two steps gave no gradient to {A}, which is to be trained"
    }


def test_one_factor_that_is_cut_off() -> None:
    """B learns and A does not: the loss falls, so only the gate can tell."""
    patches = {"llmscale.model.peft.lora.LoraUpdate.reduce": without_gradient_to_A}
    assert said(layout_config(ONE, LORA), patches) == {
        f"two steps gave no gradient to {A}, which is to be trained"
    }


def test_an_adapter_with_a_part_that_is_left_out() -> None:
    patches = {"llmscale.model.peft.adapter.Adapter.forward": deaf_adapter}
    (words,) = said(layout_config(ONE, {"method": "adapter", "bottleneck": 3}), patches)
    assert (
        words
        == "two steps gave no gradient to adapters.layers.0.attention.down.weight, which is to be trained"
    )


@pytest.mark.parametrize("method", ["bitfit", "prompt_tuning"])
def test_a_base_weight_that_is_trained(method: str) -> None:
    patches = {f"llmscale.model.peft.{method}.apply": thaws_a_norm}
    (words,) = said(layout_config(ONE, {"method": method}, "gpt2"), patches)
    assert words == f"transformer.h.3.ln_1.weight is trained, which {method} leaves as it is"


def test_layers_that_wait_for_gradual_unfreezing_are_no_mistake() -> None:
    peft = {"method": "lora", "rank": 2}
    config = layout_config(ONE, peft)
    optimizer = config.optimizer.model_copy(update={"unfreeze_every": 5})
    assert said(config.model_copy(update={"optimizer": optimizer}), {}) == set()
    assert said(config, {}) == set()
