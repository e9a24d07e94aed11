"""The memory formula against the bytes of the tensors that are there, by kind, on real ranks.

States: after a step, the storages of weights, fp32 weights and moments; gradients as the optimizer step
finds them. Activations: storages that autograd keeps, at the fullest moment of the schedule.
"""

import weakref
from collections.abc import Iterable
from typing import Any
from unittest import mock

import pytest
import torch
from llmscale_kernels import attention
from torch import Tensor

from llmscale.config.schema import Config
from llmscale.data.batch import Batch
from llmscale.engine.engine import Engine
from llmscale.objectives.causal_lm import CausalLM
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from llmscale.plan.activations import activation_bytes
from llmscale.plan.memory import WIDTH, rank_memory
from llmscale.plan.parameters import padded_vocabulary_size
from tests.ranks import run_ranks

VOCABULARY = 1000
SEQUENCE = 128


def small_config(ranks: int, precision: str, **sections: dict[str, Any]) -> Config:
    tree: dict[str, Any] = {
        "model": {"hidden_size": 128, "layers": 4, "heads": 4, "kv_heads": 2, "ffn_size": 352},
        "train": {
            "global_batch_size": 16,
            "micro_batch_size": 2,
            "sequence_length": SEQUENCE,
            "precision": precision,
        },
        "cluster": {"processes_per_node": ranks},
    }
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section
    return Config.model_validate(tree)


def storage_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Bytes behind the tensors, shared storage counted once."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None
    }
    return sum(storages.values())


class KeptByAutograd:
    """Context that follows the storages which autograd keeps, apart from the weights', and their peak."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self.weights = {weight.untyped_storage().data_ptr() for weight in weights}
        self.references: dict[int, int] = {}
        self.live = self.peak = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept[0])

    def _keep(self, tensor: Tensor) -> list[Tensor]:
        kept = _Kept((tensor,))
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if address not in self.weights and not isinstance(tensor, torch.nn.Parameter):
            if not self.references.get(address):
                self.live += size
                self.peak = max(self.peak, self.live)
            self.references[address] = self.references.get(address, 0) + 1
            weakref.finalize(kept, self._drop, address, size)
        return kept

    def _drop(self, address: int, size: int) -> None:
        self.references[address] -= 1
        if not self.references[address]:
            self.live -= size


class _Kept(list[Tensor]):
    """A list that can be referred to weakly."""


def microbatches(config: Config) -> list[Batch]:
    count = config.train.global_batch_size // config.train.micro_batch_size // config.data_parallel
    shape = (config.train.micro_batch_size, SEQUENCE)
    tokens = torch.randint(0, VOCABULARY, shape)
    batch = Batch(tokens, tokens, torch.ones(shape), torch.arange(SEQUENCE).expand(shape))
    return [batch] * count


def measured(rank: int, config: Config) -> tuple[int, dict[str, int]]:
    """Pipeline stage, and bytes by kind."""
    world = World(Layout.of(config.parallel, config.world_size), torch.device("cpu"))
    engine = Engine(config, world, VOCABULARY, CausalLM())
    batches = microbatches(config)
    engine.step(batches)
    gradients: list[int] = []
    step = engine.deepspeed.step

    def counted_step(*arguments: Any, **options: Any) -> None:
        gradients.append(storage_bytes(gradient_tensors(engine)))
        step(*arguments, **options)

    engine.deepspeed.step = counted_step  # pyright: ignore[reportAttributeAccessIssue]
    kept = KeptByAutograd(engine.parameters.values())
    with kept.hooks:
        engine.step(batches)
    zero = engine.deepspeed.optimizer
    inner = getattr(zero, "optimizer", zero)
    weights = [getattr(p, "ds_tensor", p) for p in engine.parameters.values()]
    masters = getattr(zero, "fp32_partitioned_groups_flat", None) or [
        tensor for group in inner.param_groups for tensor in group["params"]
    ]
    if inner is zero:
        assert storage_bytes(masters) == storage_bytes(weights), "the weights are their own masters"
        masters = []
    moments = [value for entry in inner.state.values() for value in entry.values() if value.numel() > 1]
    return world.coordinates.pipeline, {
        "weights": storage_bytes(weights),
        "optimizer": storage_bytes([*masters, *moments]),
        "gradients": gradients[0],
        "kept": kept.peak,
    }


def gradient_tensors(engine: Engine) -> list[Tensor | None]:
    """Wherever the ZeRO stage keeps gradients between backward and step."""
    zero = engine.deepspeed.optimizer
    found = [parameter.grad for parameter in engine.parameters.values()]
    found += getattr(zero, "fp32_groups_gradients_flat", [])
    found.append(getattr(zero, "grad_partitions_flat_buffer", None))
    for tensors in [
        *getattr(zero, "averaged_gradients", {}).values(),
        *getattr(zero, "all_grad_tensors", {}).values(),
    ]:
        found += tensors or []
    return found


def formula(config: Config, stage: int) -> dict[str, int]:
    memory = rank_memory(config, VOCABULARY, stage)
    tensor, width = config.parallel.tensor, WIDTH[config.train.precision]
    # Of the logits, autograd keeps one copy; a layer that is computed again comes when it is gone.
    columns = padded_vocabulary_size(VOCABULARY, tensor) // tensor
    has_logits = memory.logits > 0 and config.train.recompute != "full"
    return {
        "weights": memory.weights,
        "optimizer": memory.optimizer,
        "gradients": memory.gradients,
        "kept": activation_bytes(config, stage, width, logits=0)
        + has_logits * 2 * SEQUENCE * columns * width,
    }


CASES: dict[str, tuple[int, dict[str, dict[str, Any]]]] = {
    "one rank": (1, {}),
    "zero 1": (2, {"zero": {"stage": 1}}),
    "zero 2": (2, {"zero": {"stage": 2}}),
    "zero 3": (2, {"zero": {"stage": 3}}),
    "tensor 2 with sequence": (2, {"parallel": {"tensor": 2, "sequence": True}}),
    "pipeline 2": (2, {"parallel": {"pipeline": 2}}),
    "interleaved": (2, {"parallel": {"pipeline": 2, "interleave": 2}}),
    "recomputed": (1, {"train": {"recompute": "full"}}),
    "gpt2": (1, {"model": {"family": "gpt2", "kv_heads": 4}}),
    "qwen3": (2, {"model": {"family": "qwen3"}, "parallel": {"tensor": 2}}),
}


PRECISIONS = ["fp32", "bf16"]
Measured = dict[tuple[str, str], list[tuple[int, dict[str, int]]]]


def measure_all(
    rank: int, configs: dict[tuple[str, str], Config], with_kernel: bool = False
) -> dict[tuple[str, str], Any]:
    """With torch's attention, as on GPUs, unless that of CPUs is asked for."""
    fits = attention.fits if with_kernel else lambda query: False
    with mock.patch.object(attention, "fits", fits):
        return {case: measured(rank, config) for case, config in configs.items()}


@pytest.fixture(scope="module")
def bytes_there() -> Measured:
    """Stage and bytes by kind of each rank, by case: all cases of a number of ranks in the same processes."""
    found: Measured = {}
    for ranks in (1, 2):
        configs = {
            (case, precision): small_config(ranks, precision, **sections)
            for case, (wanted, sections) in CASES.items()
            for precision in PRECISIONS
            if wanted == ranks
        }
        by_rank = run_ranks(ranks, measure_all, configs)
        found |= {case: [one[case] for one in by_rank] for case in configs}
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def test_formula_is_what_is_there(bytes_there: Measured, case: str, precision: str) -> None:
    ranks, sections = CASES[case]
    config = small_config(ranks, precision, **sections)
    for stage, found in bytes_there[case, precision]:
        expected = formula(config, stage)
        for kind in ("weights", "optimizer", "gradients"):
            assert found[kind] == pytest.approx(expected[kind], rel=0.002), kind
        assert found["kept"] == pytest.approx(expected["kept"], rel=0.05)


def test_the_kernel_of_cpus_keeps_its_output_once() -> None:
    config = small_config(1, "fp32")
    ((_, found),) = run_ranks(1, measure_all, {("one rank", "fp32"): config}, True)[0].values()
    model, tokens = config.model, config.train.micro_batch_size * SEQUENCE
    copies = model.layers * model.hidden_size * tokens * WIDTH["fp32"]
    assert found["kept"] == pytest.approx(formula(config, 0)["kept"] - copies, rel=0.02)
