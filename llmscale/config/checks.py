"""Rules over several keys: one small function a rule, each yields what is wrong and the way out."""

from collections.abc import Callable, Iterator
from math import isqrt

from llmscale.config import (
    cluster_checks,
    layout_checks,
    preference_checks,
    rlhf_checks,
    rlhf_cluster_checks,
    rlhf_pool_checks,
    tuning_checks,
)
from llmscale.config.problems import Problem
from llmscale.config.schema import Config

Rule = Callable[[Config], Iterator[Problem]]


def check_config(config: Config) -> list[Problem]:
    """Every problem that the config alone can tell."""
    return [problem for rule in RULES for problem in rule(config)]


def heads_divide_hidden(config: Config) -> Iterator[Problem]:
    model = config.model
    if model.head_size is None and model.hidden_size % model.heads:
        yield Problem(
            "model.heads",
            model.heads,
            f"does not divide model.hidden_size = {model.hidden_size}; take a divisor or set model.head_size",
        )


def head_size_is_even(config: Config) -> Iterator[Problem]:
    model = config.model
    if model.family != "gpt2" and model.hidden_size % model.heads == 0 and model.head_size_or_default % 2:
        yield Problem(
            "model.head_size", model.head_size_or_default, "must be even: rotary embedding turns pairs"
        )


def kv_heads_divide_heads(config: Config) -> Iterator[Problem]:
    model = config.model
    if model.heads % model.kv_heads_or_default:
        yield Problem(
            "model.kv_heads",
            model.kv_heads,
            f"does not divide model.heads = {model.heads}; each serves the same number of heads",
        )
    if model.family == "gpt2" and model.kv_heads_or_default != model.heads:
        yield Problem("model.kv_heads", model.kv_heads, "gpt2 has no grouped-query attention; leave it out")


def gpt2_head_size(config: Config) -> Iterator[Problem]:
    model = config.model
    if model.family == "gpt2" and model.head_size and model.head_size * model.heads != model.hidden_size:
        yield Problem(
            "model.head_size",
            model.head_size,
            f"gpt2 needs hidden_size / heads = {model.hidden_size / model.heads:g}",
        )


def options_of_family(config: Config) -> Iterator[Problem]:
    model = config.model
    if model.sliding_window and model.family not in ("mistral",):
        yield Problem(
            "model.sliding_window", model.sliding_window, f"{model.family} has none; use model.family=mistral"
        )
    if model.rope_scaling and model.family == "gpt2":
        yield Problem("model.rope_scaling", "{…}", "gpt2 has learned positions; leave it out")


def sequence_fits_positions(config: Config) -> Iterator[Problem]:
    limit = config.model.max_positions
    if limit and config.train.sequence_length > limit:
        yield Problem(
            "train.sequence_length",
            config.train.sequence_length,
            f"is longer than model.max_positions = {limit}",
        )


def world_is_product(config: Config) -> Iterator[Problem]:
    if config.data_parallel == 0:
        parallel = config.parallel
        product = parallel.tensor * parallel.pipeline * parallel.context
        yield Problem(
            "cluster.processes_per_node",
            config.cluster.processes_per_node,
            f"nodes × processes_per_node = {config.world_size} ranks must be a multiple of "
            f"tensor × pipeline × context = {product}",
        )


def elastic_counts(config: Config) -> Iterator[Problem]:
    """Going on with fewer nodes takes a smaller number of them that layout and batch size work with."""
    elastic, nodes = config.cluster.elastic, config.cluster.nodes
    if elastic is None:
        return
    key = "cluster.elastic.min_nodes"
    counts = [count for count in _smaller_counts(config) if count < nodes]
    if elastic.min_nodes > nodes:
        yield Problem(key, elastic.min_nodes, f"is more than cluster.nodes = {nodes}")
    elif elastic.min_nodes < nodes and not any(count >= elastic.min_nodes for count in counts):
        known = f"{_list(counts)} would do" if counts else "no smaller number would do either"
        message = f"layout and batch size work with none of {elastic.min_nodes} to {nodes - 1} nodes; {known}"
        yield Problem(key, elastic.min_nodes, message)


def _smaller_counts(config: Config) -> list[int]:
    """Numbers of nodes that layout and batch size work with, in order; found from the replicas, which
    divide the microbatches of a step."""
    parallel, ranks = config.parallel, config.cluster.processes_per_node
    model_ranks = parallel.tensor * parallel.pipeline * parallel.context
    worlds = [
        replicas * model_ranks
        for replicas in _divisors(config.train.global_batch_size // config.train.micro_batch_size)
    ]
    return [world // ranks for world in worlds if world % ranks == 0 and fits_nodes(config, world // ranks)]


def _divisors(number: int) -> list[int]:
    small = [factor for factor in range(1, isqrt(number) + 1) if number % factor == 0]
    return sorted({*small, *(number // factor for factor in small)})


def fits_nodes(config: Config, nodes: int) -> bool:
    """Whether layout and batch size work with another number of nodes."""
    cluster = config.cluster.model_copy(update={"nodes": nodes})
    fewer = config.model_copy(update={"cluster": cluster})
    return not any(problem for rule in OF_WORLD_SIZE for problem in rule(fewer))


def _list(numbers: list[int]) -> str:
    """The largest few."""
    return ", ".join(str(number) for number in numbers[-5:])


def batch_divides(config: Config) -> Iterator[Problem]:
    train, replicas = config.train, config.data_parallel
    unit = train.micro_batch_size * replicas
    # Of reinforcement learning a rollout is the batch.
    if not replicas or config.task == "rlhf":
        return
    if train.global_batch_size % unit:
        yield Problem(
            "train.global_batch_size",
            train.global_batch_size,
            f"must be a multiple of micro_batch_size × replicas = {train.micro_batch_size} × {replicas}",
        )
    warmup = train.batch_warmup
    if warmup is None:
        return
    for key, size in (("start", warmup.start), ("increment", warmup.increment)):
        if size % unit:
            yield Problem(
                f"train.batch_warmup.{key}", size, f"must be a multiple of {unit}, as the batch size is"
            )
    if (train.global_batch_size - warmup.start) % warmup.increment or warmup.start > train.global_batch_size:
        yield Problem(
            "train.batch_warmup.increment",
            warmup.increment,
            f"must lead from {warmup.start} to global_batch_size = {train.global_batch_size} in whole steps",
        )


def schedule_fits(config: Config) -> Iterator[Problem]:
    optimizer, steps = config.optimizer, config.train.steps
    is_too_long = optimizer.warmup_steps + (optimizer.decay_steps or 0) > steps
    if optimizer.schedule == "wsd" and is_too_long and config.train.epochs is None:
        yield Problem(
            "optimizer.decay_steps",
            optimizer.decay_steps,
            f"with warmup_steps = {optimizer.warmup_steps} is more than train.steps = {steps}",
        )
    if optimizer.min_lr is not None and optimizer.min_lr > optimizer.lr:
        yield Problem("optimizer.min_lr", optimizer.min_lr, f"is above optimizer.lr = {optimizer.lr}")


def split_sums(config: Config) -> Iterator[Problem]:
    if sum(config.data.split) <= 0 or (config.data.split[0] == 0):
        yield Problem(
            "data.split", list(config.data.split), "leaves nothing to train on; the first share must be > 0"
        )


def training_data_named(config: Config) -> Iterator[Problem]:
    if not config.data.train:
        yield Problem(
            "data.train", [], "names no corpus; make one with `llmscale data tokenize` and put its path here"
        )
    if config.tokenizer.path is None and config.model.vocabulary_size is None:
        yield Problem("tokenizer.path", None, "names no tokenizer; set it, or model.vocabulary_size")


def stop_within_schedule(config: Config) -> Iterator[Problem]:
    stop = config.train.stop_at
    if stop and stop > config.train.steps and config.train.epochs is None:
        yield Problem("train.stop_at", stop, f"is beyond train.steps = {config.train.steps}")


def profile_within_steps(config: Config) -> Iterator[Problem]:
    """Under `epochs` only the data tells the steps."""
    train = config.train
    if train.profiled_steps is None or (train.epochs is not None and train.stop_at is None):
        return
    last = train.last_step if train.epochs is None else train.stop_at
    if last is not None and train.profiled_steps[1] > last:
        message = f"is beyond the run's last step, {last} (train.steps, train.stop_at); take earlier ones"
        yield Problem("train.profile", train.profile, message)


OF_WORLD_SIZE: tuple[Rule, ...] = (world_is_product, batch_divides, layout_checks.interleave_needs_pipeline)
"""Rules that another number of nodes may break."""

RULES: tuple[Rule, ...] = (
    heads_divide_hidden,
    head_size_is_even,
    kv_heads_divide_heads,
    gpt2_head_size,
    options_of_family,
    sequence_fits_positions,
    *layout_checks.RULES,
    world_is_product,
    elastic_counts,
    batch_divides,
    schedule_fits,
    split_sums,
    training_data_named,
    stop_within_schedule,
    profile_within_steps,
    *tuning_checks.RULES,
    *preference_checks.RULES,
    *rlhf_checks.RULES,
    *rlhf_cluster_checks.RULES,
    *rlhf_pool_checks.RULES,
    *cluster_checks.RULES,
)
