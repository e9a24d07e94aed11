"""From our config to DeepSpeed's, and its initialisation."""

import contextlib
from collections.abc import Iterator
from typing import Any

import deepspeed
import deepspeed.runtime.config
import deepspeed.utils.groups
import torch
import torch.distributed
from deepspeed.runtime.base_optimizer import ZeROOptimizer
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.engine import DeepSpeedEngine

from llmscale.config.schema import Config
from llmscale.engine.operations import use_prebuilt_operations
from llmscale.parallel.mpu import ModelParallelUnit
from llmscale.parallel.world import World, register_stateful_module

register_stateful_module(deepspeed.utils.groups)

MOST_ELEMENTS_AT_ONCE = 50_000_000
"""In one collective of ZeRO."""


def deepspeed_engine(
    module: torch.nn.Module, optimizer: torch.optim.Optimizer, config: Config, world: World
) -> Any:
    """`module` under ZeRO as the config wants it. Collective; the world must be active."""
    use_prebuilt_operations()
    elements = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    in_float64 = config.train.precision == "fp64" and config.has_partitions
    with _float64_masters() if in_float64 else contextlib.nullcontext():
        engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=deepspeed_config(config, world.layout.data, elements),
            mpu=None if world.layout.world_size == world.layout.data else ModelParallelUnit(world),
        )
    # DeepSpeed would divide the gradient of the logits by its accumulation steps, which are 1: another copy
    # of the largest tensor there is.
    engine._backward_prologue_per_tensor = lambda gradient: gradient  # pyright: ignore[reportAttributeAccessIssue]
    if not config.has_partitions or (
        world.data_group.size() == 1 and isinstance(engine.optimizer, BF16_Optimizer)
    ):
        # Nobody to reduce with: saves four copies of all gradients.
        engine.enable_backward_allreduce = False
    if (
        config.has_partitions
        and world.layout.pipeline > 1
        and hasattr(engine.optimizer, "scaled_global_norm")
    ):
        _sum_norm_over_stages_once(engine.optimizer, world)
    if isinstance(engine.optimizer, BF16_Optimizer):
        _count_nothing_where_nothing_is_left(engine.optimizer, world)
    return engine


def _sum_norm_over_stages_once(optimizer: Any, world: World) -> None:
    """DeepSpeed sums the norm of each parameter group over the stages, which would wait for ever where these
    have different numbers of groups: only biases here, matrices too there. Here each rank first sums over its
    own groups."""
    own_norm = optimizer.scaled_global_norm

    def scaled_global_norm(norm_type: int = 2) -> torch.Tensor:
        optimizer._model_parallel_all_reduce = lambda tensor, op: None
        try:
            own = torch.as_tensor(own_norm(norm_type), dtype=torch.float64, device=world.device)
        finally:
            del optimizer._model_parallel_all_reduce
        # -1 is DeepSpeed's word for a norm that is not finite; all ranks must hear of it.
        square = torch.where(own < 0, torch.inf, own.square())
        torch.distributed.all_reduce(square, group=world.model_group)
        norm = square.sqrt().float()
        return torch.where(norm.isfinite(), norm, -1.0)

    optimizer.scaled_global_norm = scaled_global_norm


def _count_nothing_where_nothing_is_left(optimizer: Any, world: World) -> None:
    """What every tensor rank has as a whole, a learned prompt for example, counts in the norm of the first of
    them only. That the others may have nothing else DeepSpeed does not expect."""
    own_gradients = optimizer.get_grads_for_norm

    def gradients_for_norm(for_clipping: bool = False) -> Any:
        if for_clipping:
            return own_gradients(for_clipping)
        counted, of_experts = own_gradients()
        return counted or [torch.zeros(1, device=world.device)], of_experts

    optimizer.get_grads_for_norm = gradients_for_norm


@contextlib.contextmanager
def _float64_masters() -> Iterator[None]:
    """DeepSpeed knows no float64: it would keep masters and send gradients in float32, and hide in their
    rounding what a float64 run is there to show."""

    def masters(self: ZeROOptimizer, **options: Any) -> torch.dtype:
        configure(self, **options)
        return torch.float64

    configure = ZeROOptimizer._configure_master_weights
    data_types = DeepSpeedEngine.get_data_types
    read = deepspeed.runtime.config.get_communication_data_type
    ZeROOptimizer._configure_master_weights = masters  # pyright: ignore[reportAttributeAccessIssue]
    DeepSpeedEngine.get_data_types = lambda self: (torch.float64, torch.float64)
    deepspeed.runtime.config.get_communication_data_type = lambda *_, **__: torch.float64
    try:
        yield
    finally:
        ZeROOptimizer._configure_master_weights = configure
        DeepSpeedEngine.get_data_types = data_types
        deepspeed.runtime.config.get_communication_data_type = read


def deepspeed_config(config: Config, data_parallel: int, elements: int) -> dict[str, Any]:
    """DeepSpeed's dictionary.

    Megatron's schedule runs all microbatches of a step, so DeepSpeed sees one of them as "the" batch:
    accumulation steps are 1 and not its business. `elements` are those of this rank's trained parameters: a
    bucket larger than that would only take memory.
    """
    bucket = min(elements + elements % 2, MOST_ELEMENTS_AT_ONCE)  # DeepSpeed wants an even one
    stage = config.zero.stage if config.has_partitions else 0
    is_bf16 = config.train.precision == "bf16"
    return {
        "train_batch_size": config.train.micro_batch_size * data_parallel,
        "train_micro_batch_size_per_gpu": config.train.micro_batch_size,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        # Without partitions DeepSpeed clips a rank's own part of a model, not the whole: engine/clip.py does.
        "gradient_clipping": config.optimizer.clip if config.has_partitions else 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 60,
        # ZeRO-1 in bf16 with fp32 gradients is DeepSpeed's BF16_Optimizer, which must take each gradient
        # as it comes: between microbatches of a pipeline there is nobody to collect them.
        "bf16": {"enabled": is_bf16, "immediate_grad_update": is_bf16 and stage == 1},
        "data_types": {"grad_accum_dtype": "fp32"} if is_bf16 else {},
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            # With one replica there is nothing to scatter, and float64 cannot be.
            "reduce_scatter": data_parallel > 1 and config.train.precision != "fp64",
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            **_offload(config),
        },
    }


def _offload(config: Config) -> dict[str, Any]:
    offload = config.zero.offload
    path = str(offload.nvme_path) if offload.nvme_path else None
    return {
        name: {"device": device, "nvme_path": path, "pin_memory": offload.pin_memory}
        for name, device in (("offload_optimizer", offload.optimizer), ("offload_param", offload.parameters))
        if device != "none"
    }
