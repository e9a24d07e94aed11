"""Methods that the peft library has: from the same weights its losses over 20 steps, and its tensors."""

from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from llmscale.config.schema import Config
from llmscale.data.batch import Batch
from llmscale.engine.engine import Engine
from llmscale.model.language_model import LanguageModel
from llmscale.model.parameters import declare_parameters
from llmscale.model.peft.p_tuning import encoded
from llmscale.model.peft.table import apply_peft, virtual_tokens
from llmscale.objectives.causal_lm import CausalLM
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from tests.distributed.parity import randomise_base
from tests.peers import peer
from tests.ranks import run_ranks

VOCABULARY, STEPS, ROWS, LENGTH, VIRTUAL = 211, 20, 2, 17, 5
LR, BETAS, EPSILON, DECAY = 2e-3, (0.9, 0.95), 1e-8, 0.1

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama", "kv_heads": 2},
    "gpt2": {"family": "gpt2"},
    "qwen3": {"family": "qwen3", "kv_heads": 2, "head_size": 12},
}
LINEAR = {"r": 4, "lora_alpha": 12, "task_type": "CAUSAL_LM"}
PROMPT = {"num_virtual_tokens": VIRTUAL, "task_type": "CAUSAL_LM"}
METHODS: dict[str, tuple[dict[str, Any], peft.PeftConfig]] = {
    "lora": (
        {"method": "lora", "rank": 4, "alpha": 12},
        peft.LoraConfig(**LINEAR, target_modules="all-linear"),
    ),
    "rslora-some": (
        {"method": "lora", "rank": 4, "alpha": 12, "rslora": True, "target_modules": ["v_proj", "c_attn"]},
        peft.LoraConfig(**LINEAR, use_rslora=True, target_modules=["v_proj", "c_attn"]),
    ),
    "dora": (
        {"method": "dora", "rank": 4, "alpha": 12},
        peft.LoraConfig(**LINEAR, use_dora=True, target_modules="all-linear"),
    ),
    "prefix_tuning": (
        {"method": "prefix_tuning", "virtual_tokens": VIRTUAL},
        peft.PrefixTuningConfig(**PROMPT),
    ),
    "prompt_tuning": (
        {"method": "prompt_tuning", "virtual_tokens": VIRTUAL},
        peft.PromptTuningConfig(**PROMPT),
    ),
    "p_tuning": (
        {"method": "p_tuning", "virtual_tokens": VIRTUAL, "encoder_hidden_size": 24},
        peft.PromptEncoderConfig(**PROMPT, encoder_hidden_size=24),
    ),
}


def config_of(model: str, method: str) -> Config:
    options = METHODS[method][0]
    positions = LENGTH + 1 + VIRTUAL
    return Config.model_validate(
        {
            "model": {
                "hidden_size": 32,
                "layers": 2,
                "heads": 4,
                "ffn_size": 56,
                "vocabulary_size": VOCABULARY,
                "max_positions": positions,
                **MODELS[model],
            },
            "peft": options,
            "train": {
                "precision": "fp32",
                "steps": STEPS,
                "global_batch_size": ROWS,
                "micro_batch_size": ROWS,
                "sequence_length": LENGTH,
            },
            "optimizer": {
                "lr": LR,
                "betas": BETAS,
                "epsilon": EPSILON,
                "weight_decay": DECAY,
                "clip": 0.0,
                "schedule": "constant",
            },
        }
    )


def texts(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, VOCABULARY, (ROWS, LENGTH + 1), generator=generator)


Outcome = tuple[dict[str, Tensor], dict[str, Tensor], list[float]]


@cache
def outcomes(model: str) -> dict[str, Outcome]:
    """Of all methods, trained one after the other on one rank."""
    configs = [config_of(model, method) for method in METHODS]
    return dict(zip(METHODS, run_ranks(1, _train_all, configs)[0]))


def _train_all(_: int, configs: list[Config]) -> list[Outcome]:
    return [ours(config) for config in configs]


def ours(config: Config) -> Outcome:
    """All weights at the start and those that are trained at the end, by stored name, and the losses."""
    before: dict[str, Tensor] = {}

    def prepare(chunks: Sequence[LanguageModel]) -> None:
        randomise_base(chunks)
        apply_peft(chunks, config.peft, seed=7)
        before.update(whole_tensors(chunks))

    engine = Engine(config, World(Layout(), torch.device("cpu")), VOCABULARY, CausalLM(), prepare)
    losses = [engine.step([batch_of(config, step)]).loss for step in range(STEPS)]
    after = whole_tensors(engine.chunks, trained_only=True)
    engine.close()
    return before, after, losses


def batch_of(config: Config, step: int) -> Batch:
    """A step's texts after the placeholders that the method wants."""
    virtual = virtual_tokens(config.peft)
    placeholders = -1 - torch.arange(virtual).expand(ROWS, -1)
    tokens = torch.cat((placeholders, texts(step)), dim=1)
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:]
    counts = (labels >= 0).float()
    return Batch(inputs, labels.clamp(min=0), counts, torch.arange(inputs.shape[1]).expand_as(inputs))


def whole_tensors(chunks: Sequence[LanguageModel], trained_only: bool = False) -> dict[str, Tensor]:
    whole: dict[str, Tensor] = {}
    for chunk in chunks:
        declarations = declare_parameters(chunk)
        for local_name, parameter in chunk.named_parameters():
            if trained_only and not parameter.requires_grad:
                continue
            for region in declarations[local_name].regions:
                part = parameter.detach()[region.local.slices]
                target = whole.setdefault(region.name, torch.full(region.shape, torch.nan))
                target[region.box.slices] = part.T if region.transpose else part
    return whole


def library_model(config: Config, options: peft.PeftConfig, before: dict[str, Tensor]) -> peft.PeftModel:
    """The same model there, with the same weights, what is trained included."""
    base = peer(config.model, VOCABULARY, LENGTH + 1 + VIRTUAL)
    added = {name: tensor for name, tensor in before.items() if name not in base.state_dict()}
    missing, unexpected = base.load_state_dict(
        {name: tensor for name, tensor in before.items() if name not in added}, strict=False
    )
    assert missing in ([], ["lm_head.weight"]) and unexpected == []
    model = peft.get_peft_model(base, options)
    if isinstance(options, peft.PromptEncoderConfig):
        encoder = model.prompt_encoder["default"]
        names = {name.removeprefix("prompt_encoder."): tensor for name, tensor in added.items()}
        assert names.keys() == dict(encoder.named_parameters()).keys()
        encoder.load_state_dict(names)
    else:
        shapes = {name: t.shape for name, t in peft.get_peft_model_state_dict(model).items()}
        assert shapes == {name: t.shape for name, t in added.items()}
        peft.set_peft_model_state_dict(model, added)
    return model


def library_losses(model: peft.PeftModel) -> list[float]:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": DECAY},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPSILON)
    losses: list[float] = []
    model.train()
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(input_ids=texts(step), labels=texts(step)).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("model", ["llama", "gpt2", pytest.param("qwen3", marks=pytest.mark.soak)])
@pytest.mark.parametrize("method", METHODS)
def test_losses_and_trained_tensors(model: str, method: str) -> None:
    config, options = config_of(model, method), deepcopy(METHODS[method][1])
    before, after, losses = outcomes(model)[method]
    library = library_model(config, options, before)
    expected = library_losses(library)
    assert losses == pytest.approx(expected, abs=1e-5)
    assert abs(losses[0] - losses[-1]) > 1e-4
    tensors = peft.get_peft_model_state_dict(library)
    trained = {"prompt_embeddings": encoded(after)} if method == "p_tuning" else after
    assert trained.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(trained[name], tensor, atol=2e-4, rtol=0, msg=name)
