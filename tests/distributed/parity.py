"""The same training under different layouts, and how far the results lie apart."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from llmscale.config.schema import Config
from llmscale.data.batch import Batch
from llmscale.engine.engine import Engine
from llmscale.model.language_model import LanguageModel
from llmscale.model.parameters import declare_parameters
from llmscale.model.peft.table import virtual_tokens
from llmscale.model.regions import Piece
from llmscale.objectives.table import objective_of
from llmscale.parallel.layout import Layout
from llmscale.parallel.rng import derived_seed
from llmscale.parallel.world import World
from llmscale.run.prepare_model import tune
from llmscale.train.gates import TuningGate
from tests.ranks import run_ranks

STEPS = 20
BETA = 0.9
TEXTS_A_ROW = 2
"""Of classification."""
Patches = dict[str, Any]
"""Dotted name → what stands there instead: a planted mistake."""


@dataclass
class Run:
    """What one layout gave; tensors are whole, by Hugging Face name."""

    losses: list[float]
    grad_norms: list[float]
    gradients: dict[str, Tensor]
    """Of the first step."""
    weights: dict[str, Tensor]
    """After the last step."""


@dataclass(frozen=True)
class Tolerance:
    loss: float
    grad_norm: float
    gradient: float
    """Largest difference, relative to the largest element of the tensor."""
    weight: float


TOLERANCES = {
    "fp32": Tolerance(loss=2e-6, grad_norm=1e-5, gradient=2e-5, weight=1e-4),
    "fp64": Tolerance(loss=1e-12, grad_norm=2e-7, gradient=1e-12, weight=1e-12),
    "bf16": Tolerance(loss=5e-3, grad_norm=1e-1, gradient=2e-1, weight=2e-1),
}
"""DeepSpeed returns the gradient norm in float32, whatever it was computed in."""


def small_model(family: str) -> dict[str, Any]:
    """Sizes of which each layout gets a whole part."""
    return {
        "family": family,
        "hidden_size": 64,
        "layers": 4,
        "heads": 8,
        "kv_heads": 8 if family == "gpt2" else 4,
        "ffn_size": 96,
    }


def parity_config(
    family: str = "llama",
    tied: bool = False,
    precision: str = "fp32",
    zero: int = 1,
    data: int = 1,
    recompute: str = "none",
    peft: dict[str, Any] | None = None,
    **parallel: Any,
) -> Config:
    ranks = parallel.get("tensor", 1) * parallel.get("pipeline", 1) * data
    return Config.model_validate(
        {
            "model": {
                **small_model(family),
                "vocabulary_size": 1000,
                "tie_embeddings": tied,
                "sliding_window": 9 if family == "mistral" else None,
                "max_positions": 40 if peft else None,
            },
            "train": {
                "steps": STEPS,
                "global_batch_size": 4,
                "micro_batch_size": 1,
                "sequence_length": 24,
                "precision": precision,
                "recompute": recompute,
            },
            "optimizer": {"lr": 1e-3, "betas": [BETA, 0.95], "clip": 0.0, "epsilon": 1e-4},
            "peft": peft or {},
            "parallel": parallel,
            "zero": {"stage": zero},
            "cluster": {"processes_per_node": ranks},
        }
    )


def train(config: Config, patches: Patches | None = None, steps: int = STEPS) -> Run:
    """Train under the config's layout in fresh ranks."""
    return train_all([config], patches, steps)[0]


def train_all(configs: Sequence[Config], patches: Patches | None = None, steps: int = STEPS) -> list[Run]:
    """Train one after the other in the same fresh ranks."""
    ranks = run_ranks(configs[0].world_size, _train_rank, list(configs), patches or {}, steps)
    return [
        Run(reports[0][0], reports[0][1], _assemble(r[2] for r in reports), _assemble(r[3] for r in reports))
        for reports in zip(*ranks)
    ]


def _train_rank(_: int, configs: list[Config], patches: Patches, steps: int) -> list[tuple[Any, ...]]:
    return [_train_one(config, patches, steps) for config in configs]


def _train_one(config: Config, patches: Patches, steps: int) -> tuple[Any, ...]:
    with ExitStack() as stack:
        for name, replacement in patches.items():
            stack.enter_context(mock.patch(name, replacement))
        world = World(Layout.of(config.parallel, config.world_size), torch.device("cpu"))
        if config.peft.method == "none":
            engine = Engine(config, world, config.model.vocabulary_size or 0, objective_of(config))
            randomise_vectors(engine)
        else:
            prepare = partial(prepare_peft, config=config)
            engine = Engine(config, world, config.model.vocabulary_size or 0, objective_of(config), prepare)
        gate = None if config.peft.method == "none" else TuningGate(engine)
        losses: list[float] = []
        grad_norms: list[float] = []
        gradients: list[Piece] = []
        for step in range(steps):
            result = engine.step(microbatches(config, world, step))
            losses.append(result.loss)
            grad_norms.append(result.grad_norm)
            if gate is not None:
                gate.after_step(step + 1)
            if step == 0:
                # Adam's first moment is (1 - beta) × the gradient; every ZeRO stage has pieces of it.
                prefix = "optimizer.exp_avg."
                gradients = [
                    Piece(p.name.removeprefix(prefix), p.shape, p.start, p.data.clone() / (1 - BETA))
                    for p in engine.pieces_to_save()
                    if p.name.startswith(prefix)
                ]
        weights = [
            Piece(p.name, p.shape, p.start, p.data.clone())
            for p in engine.pieces_to_save()
            if not p.name.startswith("optimizer.")
        ]
        engine.close()
        return losses, grad_norms, gradients, weights


def randomise_vectors(engine: Engine) -> None:
    """Norm weights and biases at random: at 1 and 0 many mistakes cancel."""
    for piece in engine.weight_pieces():
        if len(piece.shape) == 1:
            generator = torch.Generator().manual_seed(derived_seed(piece.name))
            whole = torch.randn(piece.shape, generator=generator) * 0.1 + ("norm" in piece.name)
            piece.data.copy_(whole[piece.box.slices])
    engine.after_load({"step": 0, "optimizer_steps": 0})


@torch.no_grad()
def randomise_base(chunks: Sequence[LanguageModel]) -> None:
    """`randomise_vectors` of a model that nothing has been done to yet."""
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            if parameter.dim() == 1:
                _randomise(chunk, name, around=float("norm" in name and name.endswith("weight")))


@torch.no_grad()
def prepare_peft(chunks: Sequence[LanguageModel], config: Config) -> None:
    """`tune` for a base whose norms and biases are at random; what it starts at 0 is at random too."""
    randomise_base(chunks)
    tune(chunks, config.peft, config.train.seed)
    for chunk in chunks:
        for name in chunk.added:
            if not chunk.get_parameter(name).any():
                _randomise(chunk, name, around=0.0)


def _randomise(chunk: LanguageModel, local_name: str, around: float) -> None:
    parameter = chunk.get_parameter(local_name)
    for region in declare_parameters(chunk)[local_name].regions:
        generator = torch.Generator().manual_seed(derived_seed(region.name))
        whole = torch.randn(region.shape, generator=generator) * 0.1 + around
        parameter[region.local.slices] = whole[region.box.slices].to(parameter)


def microbatches(config: Config, world: World, step: int) -> list[Batch]:
    """This rank's part of a global batch of random tokens; a few of them do not count."""
    train, replicas = config.train, world.layout.data
    generator = torch.Generator().manual_seed(step)
    shape = (train.global_batch_size, train.sequence_length + 1)
    tokens = torch.randint(0, config.model.vocabulary_size or 0, shape, generator=generator)
    mask = (torch.rand(shape, generator=generator) > 0.1).float()
    normal = torch.randn(train.global_batch_size, TEXTS_A_ROW, generator=generator)
    virtual = virtual_tokens(config.peft)
    if virtual:
        tokens[:, :virtual] = -1 - torch.arange(virtual)
        mask[:, : virtual + 1] = 0.0
    rows = train.micro_batch_size
    batches: list[Batch] = []
    for microbatch in range(train.global_batch_size // (rows * replicas)):
        first = (microbatch * replicas + world.coordinates.data) * rows
        part, part_mask = tokens[first : first + rows], mask[first : first + rows]
        positions = torch.arange(train.sequence_length).expand(rows, -1)
        batch = Batch(part[:, :-1].contiguous(), part[:, 1:].contiguous(), part_mask[:, 1:], positions)
        if config.task in ("reward", "dpo"):
            batch = _of_groups(batch, config, normal[first : first + rows])
        elif config.outputs is not None:
            batch = _of_texts(batch, config, normal[first : first + rows])
        batches.append(batch)
    return batches


def _of_texts(batch: Batch, config: Config, normal_BL: Tensor) -> Batch:
    """Two texts in every row, of different lengths, and what is to be told of each."""
    rows, length = batch.tokens_BS.shape
    is_regression = config.classify.problem == "regression"
    cut = length // 2 + 1
    mask = torch.zeros(rows, length)
    mask[:, (cut - 1, length - 1)] = 1.0
    positions = torch.cat((torch.arange(cut), torch.arange(length - cut))).expand(rows, -1)
    return replace(
        batch,
        loss_mask_BS=mask,
        position_ids_BS=positions,
        document_lengths=((cut, length - cut),) * rows,
        targets_BL=normal_BL if is_regression else (normal_BL * 100).floor() % (config.outputs or 1),
    )


def _of_groups(batch: Batch, config: Config, normal_BL: Tensor) -> Batch:
    """A group in every row: an answer and its mismatch (kto), or the best of three answers and the rest."""
    rows, length = batch.tokens_BS.shape
    is_unpaired = config.task == "dpo" and config.dpo.loss == "kto"
    cuts = (length // 2, length // 2) if is_unpaired else (length // 3 - 1, length // 3, length // 3 + 1)
    prompt = 3
    learns_last = config.task == "reward"
    mask = [float(at == cut - 1 if learns_last else at >= prompt) for cut in cuts for at in range(cut)]
    columns = len(cuts)
    role_BL = torch.arange(columns).expand(rows, -1)
    # About what random weights give, and of a mismatch less: the estimate of KL is above 0.
    token = -math.log(config.model.vocabulary_size or 1)
    known_BL = token * (torch.tensor(cuts) - prompt) + normal_BL[:, :1] * torch.linspace(-1, 1, columns)
    return replace(
        batch,
        loss_mask_BS=torch.tensor([mask] * rows),
        position_ids_BS=torch.tensor([[at for cut in cuts for at in range(cut)]] * rows),
        document_lengths=(cuts,) * rows,
        targets_BL=(normal_BL > 0).float() if is_unpaired else None,
        group_BL=torch.zeros(rows, columns, dtype=torch.int64),
        role_BL=role_BL,
        margin_BL=role_BL * 0.25,
        reference_BL=known_BL.double() - 2.0 * is_unpaired * (role_BL == 1),
    )


def _assemble(pieces_of_ranks: Any) -> dict[str, Tensor]:
    whole: dict[str, Tensor] = {}
    for pieces in pieces_of_ranks:
        for piece in pieces:
            target = whole.setdefault(piece.name, torch.full(piece.shape, torch.nan, dtype=piece.data.dtype))
            target[piece.box.slices] = piece.data
    return whole


def compare(run: Run, reference: Run, tolerance: Tolerance) -> None:
    """
    Raises:
        AssertionError: naming the first thing that lies further apart than allowed.
    """
    for what, allowed, ours, theirs in (
        ("loss", tolerance.loss, run.losses, reference.losses),
        ("gradient norm", tolerance.grad_norm, run.grad_norms, reference.grad_norms),
    ):
        for step, (a, b) in enumerate(zip(ours, theirs, strict=True), 1):
            assert abs(a - b) <= allowed * abs(b), f"{what} of step {step}: {a!r} against {b!r}"
    for what, allowed, ours, theirs in (
        ("gradient", tolerance.gradient, run.gradients, reference.gradients),
        ("weight", tolerance.weight, run.weights, reference.weights),
    ):
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            apart = largest_difference(tensor, theirs[name])
            assert apart <= allowed, f"{what} of {name}: {apart:.1e} apart"


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """Relative to the largest element; NaN (an element that no rank has) is infinitely far."""
    apart = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    return apart if apart == apart else float("inf")
