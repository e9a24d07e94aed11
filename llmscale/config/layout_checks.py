"""Rules of a model's layout over ranks (`parallel`, `zero`); `llmscale.config.checks` asks them, and those of
reinforcement learning ask them for each model."""

from collections.abc import Iterator

from llmscale.config.problems import Problem
from llmscale.config.schema import Config


def tensor_divides_model(config: Config) -> Iterator[Problem]:
    model, tensor = config.model, config.parallel.tensor
    for key, size in (
        ("model.heads", model.heads),
        ("model.kv_heads", model.kv_heads_or_default),
        ("model.ffn_size", model.ffn_size_or_default),
    ):
        if size % tensor:
            yield Problem("parallel.tensor", tensor, f"does not divide {key} = {size}")


def sequence_parallel_layout(config: Config) -> Iterator[Problem]:
    parallel, length = config.parallel, config.train.sequence_length
    if not parallel.sequence:
        return
    if parallel.tensor == 1:
        yield Problem(
            "parallel.sequence", True, "needs parallel.tensor above 1: it splits over the tensor ranks"
        )
    elif length % parallel.tensor:
        yield Problem(
            "parallel.sequence", True, f"train.sequence_length = {length} must divide by parallel.tensor"
        )


def pipeline_divides_layers(config: Config) -> Iterator[Problem]:
    layers, parallel = config.model.layers, config.parallel
    chunks = parallel.pipeline * parallel.interleave
    if layers < chunks:
        yield Problem(
            "parallel.pipeline", parallel.pipeline, f"model.layers = {layers} is fewer than {chunks} chunks"
        )
    elif layers % chunks:
        yield Problem(
            "parallel.pipeline",
            parallel.pipeline,
            f"model.layers = {layers} must divide by pipeline × interleave = {chunks}",
        )


def interleave_needs_pipeline(config: Config) -> Iterator[Problem]:
    parallel, train = config.parallel, config.train
    if parallel.interleave == 1:
        return
    if parallel.pipeline == 1:
        yield Problem("parallel.interleave", parallel.interleave, "needs parallel.pipeline above 1")
        return
    replicas = config.data_parallel * train.micro_batch_size
    if replicas and (train.global_batch_size // replicas) % parallel.pipeline:
        yield Problem(
            "parallel.interleave",
            parallel.interleave,
            f"microbatches a step = {train.global_batch_size // replicas} must divide by parallel.pipeline = "
            f"{parallel.pipeline}",
        )


def pipeline_needs_zero_one(config: Config) -> Iterator[Problem]:
    if config.parallel.pipeline > 1 and config.zero.stage > 1:
        yield Problem(
            "zero.stage",
            config.zero.stage,
            f"does not work with parallel.pipeline = {config.parallel.pipeline}: partitioned gradients "
            "cannot wait for the schedule's end; use zero.stage=1 or parallel.pipeline=1",
        )


def parameters_offload_needs_zero_three(config: Config) -> Iterator[Problem]:
    if config.zero.offload.parameters != "none" and config.zero.stage < 3:
        yield Problem("zero.offload.parameters", config.zero.offload.parameters, "needs zero.stage=3")
    kinds = (config.zero.offload.optimizer, config.zero.offload.parameters)
    if "nvme" in kinds and config.zero.offload.nvme_path is None:
        yield Problem("zero.offload.nvme_path", None, "names the folder for nvme offloading; set it")


def float64_layout(config: Config) -> Iterator[Problem]:
    if config.train.precision == "fp64" and config.zero.stage == 3:
        yield Problem("train.precision", "fp64", "DeepSpeed's ZeRO-3 has no float64; use zero.stage=1")


def later_axes(config: Config) -> Iterator[Problem]:
    for key, size in (("context", config.parallel.context), ("expert", config.parallel.expert)):
        if size > 1:
            yield Problem(f"parallel.{key}", size, f"{key} parallelism is not built yet; set it to 1")


RULES = (
    tensor_divides_model,
    sequence_parallel_layout,
    pipeline_divides_layers,
    interleave_needs_pipeline,
    pipeline_needs_zero_one,
    parameters_offload_needs_zero_three,
    float64_layout,
    later_axes,
)
