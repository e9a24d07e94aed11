"""Methods that the peft library has not, BitFit, `freeze` and Houlsby adapters, against transformers' model
with what is trained picked by hand: from the same weights its losses over 20 steps, and its weights then."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from llmscale.config.schema import Config
from llmscale.config.tuning import PeftSection
from tests.model.peft.test_peft_library import (
    LENGTH,
    VIRTUAL,
    VOCABULARY,
    Outcome,
    config_of,
    library_losses,
    ours,
)
from tests.peers import peer
from tests.ranks import run_ranks

WIDTH = 6
LAST_LAYER_AND_NORM = {"method": "freeze", "train": ["model.layers.1.*", "model.norm.weight"]}
QUERIES = {"method": "freeze", "train": ["*.0.self_attn.[qkv]_proj.weight", "*_norm.weight"]}
TIED_TOKENS = {"method": "freeze", "train": ["transformer.wte.weight", "transformer.h.0.attn.*"]}
ADAPTER = {"method": "adapter", "bottleneck": WIDTH}

PICKED: dict[str, tuple[str, dict[str, Any], Callable[[str], bool]]] = {
    "bitfit": ("gpt2", {"method": "bitfit"}, lambda name: name.split(".")[-1] == "bias"),
    "last layer": (
        "llama",
        LAST_LAYER_AND_NORM,
        lambda name: name.startswith("model.layers.1.") or name == "model.norm.weight",
    ),
    "queries, keys, values and their norms": (
        "qwen3",
        QUERIES,
        lambda name: (
            name in [f"model.layers.0.self_attn.{letter}_proj.weight" for letter in "qkv"]
            or name in [f"model.layers.{i}.self_attn.{letter}_norm.weight" for i in (0, 1) for letter in "qk"]
        ),
    ),
    "tied embedding": (
        "gpt2",
        TIED_TOKENS,
        lambda name: name == "transformer.wte.weight" or name.startswith("transformer.h.0.attn."),
    ),
}
"""Model, options, and whether a tensor of transformers' model is trained."""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    """Of all cases, trained one after the other on one rank."""
    wanted = {name: (model, options) for name, (model, options, _) in PICKED.items()}
    wanted |= {f"adapter of {model}": (model, ADAPTER) for model in ("llama", "gpt2")}
    configs = [of_options(model, options) for model, options in wanted.values()]
    return dict(zip(wanted, run_ranks(1, _train_all, configs)[0]))


def of_options(model: str, options: dict[str, Any]) -> Config:
    return config_of(model, "lora").model_copy(update={"peft": PeftSection.model_validate(options)})


def _train_all(_: int, configs: Sequence[Config]) -> list[Outcome]:
    return [ours(config) for config in configs]


def reference(model: str, before: dict[str, Tensor]) -> transformers.PreTrainedModel:
    """Transformers' model with the weights that ours began with."""
    built = peer(config_of(model, "lora").model, VOCABULARY, LENGTH + 1 + VIRTUAL)
    of_base = {name: tensor for name, tensor in before.items() if name in built.state_dict()}
    missing, unexpected = built.load_state_dict(of_base, strict=False)
    assert missing in ([], ["lm_head.weight"]) and unexpected == []
    return built


@pytest.mark.parametrize("case", PICKED)
def test_what_is_picked_by_hand(outcomes: dict[str, Outcome], case: str) -> None:
    model, _, is_picked = PICKED[case]
    before, after, losses = outcomes[case]
    theirs = reference(model, before)
    picked = {name: parameter for name, parameter in theirs.named_parameters() if is_picked(name)}
    theirs.requires_grad_(False)
    for parameter in picked.values():
        parameter.requires_grad_(True)
    assert losses == pytest.approx(library_losses(theirs), abs=1e-5)
    assert abs(losses[0] - losses[-1]) > 1e-4
    assert_same(after, {name: parameter.detach() for name, parameter in picked.items()})


class Adapter(torch.nn.Module):
    """Written from the paper: down, a gelu, up, and what came in."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        self.own = torch.nn.ParameterDict({name.replace(".", "_"): t for name, t in parameters.items()})

    def forward(self, hidden: Tensor) -> Tensor:
        inner = F.gelu(hidden @ self.own["down_weight"].T + self.own["down_bias"])
        return hidden + inner @ self.own["up_weight"].T + self.own["up_bias"]


def adapt(module: torch.nn.Module, adapter: Adapter) -> None:
    """Let the adapter stand behind the module, whose output may be the first of several."""

    def hook(_: torch.nn.Module, __: Any, output: Any) -> Any:
        return (adapter(output[0]), *output[1:]) if isinstance(output, tuple) else adapter(output)

    module.register_forward_hook(hook)


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_adapters_written_by_hand(outcomes: dict[str, Outcome], model: str) -> None:
    before, after, losses = outcomes[f"adapter of {model}"]
    theirs = reference(model, before)
    theirs.requires_grad_(False)
    layers, attention = (
        (theirs.model.layers, "self_attn") if model == "llama" else (theirs.transformer.h, "attn")
    )
    adapters: dict[str, Adapter] = {}
    for number, layer in enumerate(layers):
        for kind, module in (("attention", getattr(layer, attention)), ("mlp", layer.mlp)):
            name = f"adapters.layers.{number}.{kind}"
            prefix = f"{name}."
            own = {key.removeprefix(prefix): t.clone() for key, t in before.items() if key.startswith(prefix)}
            adapters[name] = Adapter(own)
            layer.add_module(f"adapter_{kind}", adapters[name])
            adapt(module, adapters[name])
    assert losses == pytest.approx(library_losses(theirs), abs=1e-5)
    assert abs(losses[0] - losses[-1]) > 1e-4
    expected = {
        f"{name}.{key.replace('_', '.')}": parameter.detach()
        for name, adapter in adapters.items()
        for key, parameter in adapter.own.items()
    }
    assert_same(after, expected)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-4, rtol=0, msg=name)
