"""Bytes that one rank needs, by kind.

What DeepSpeed really allocates, which is more than the ZeRO paper's table: an fp32 copy of the weights
for the optimizer whatever the weights' own precision, under ZeRO-1 in bf16 one whole fp32 gradient on every
rank, and a copy of the rank's part of the gradient while the optimizer steps. Only a model of one replica in
full precision under ZeRO-1 has none of these: its weights are their own masters.
"""

from dataclasses import dataclass

from llmscale.config.schema import Config
from llmscale.plan.activations import activation_bytes, logits_bytes
from llmscale.plan.parameters import stage_parameters
from llmscale.plan.trained import ADDING, trained_on_rank

WIDTH = {"fp32": 4, "bf16": 2, "fp64": 8}
"""Bytes of a weight and of an activation."""
STATE_WIDTH = {"fp32": 4, "bf16": 4, "fp64": 8}
"""Bytes of a gradient that is kept, of the optimizer's weights and of each of its moments."""
LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed's default: ZeRO-3 keeps up to so many gathered parameters instead of dropping them at once."""
REDUCE_BUCKET = 50_000_000
"""Elements of the buffer that gradients are reduced in, as the engine asks of DeepSpeed."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes at the fullest moment of a training step."""

    weights: int
    gradients: int
    optimizer: int
    """fp32 weights, moments and, for a distance penalty, the weights that training started from."""
    buffers: int
    """Buckets for communication, and the weights that ZeRO-3 has gathered."""
    activations: int
    logits: int
    step_copy: int
    """The rank's gradient once more while the optimizer steps, when the activations are gone."""
    host: int
    """Offloaded to main memory, with the weights of a held reference; in none of the others."""

    @property
    def kinds(self) -> dict[str, int]:
        """What is there at once, by name, in the order of a report."""
        kept = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "buffers": self.buffers,
        }
        if self.step_copy > self.activations + self.logits:
            return kept | {"copy of gradients in the optimizer step": self.step_copy}
        return kept | {"activations": self.activations, "logits": self.logits}

    @property
    def total(self) -> int:
        return sum(self.kinds.values())


def rank_memory(config: Config, vocabulary_size: int, stage: int) -> RankMemory:
    """One rank of pipeline stage `stage`. All tensor and data ranks of a stage need the same."""
    parallel, zero, train = config.parallel, config.zero, config.train
    count = stage_parameters(
        config.model,
        vocabulary_size,
        train.sequence_length,
        parallel.tensor,
        parallel.pipeline,
        stage,
        config.outputs,
    )
    width, state_width = WIDTH[train.precision], STATE_WIDTH[train.precision]
    replicas = config.data_parallel * parallel.context
    trained = trained_on_rank(config, count, stage)
    held = count.total + (trained if config.peft.method in ADDING else 0)
    own = -(-trained // replicas)
    weights = (-(-held // replicas) if zero.stage == 3 else held) * width
    gradients = (trained if zero.stage == 1 else own) * state_width
    kept = 3 if config.optimizer.distance_penalty else 2  # the moments, and where training started
    optimizer = own * state_width * config.has_partitions + kept * trained * state_width // replicas
    has_no_bucket = not config.has_partitions or (zero.stage == 1 and train.precision == "bf16")
    host = 0
    if zero.offload.optimizer != "none":
        host, optimizer = (optimizer + own * state_width if zero.offload.optimizer == "cpu" else 0), 0
    if zero.offload.parameters != "none":
        host, weights = host + (weights if zero.offload.parameters == "cpu" else 0), 0
    if config.has_reference and config.dpo.reference == "held":
        host += count.total * width
    logits = logits_bytes(config, vocabulary_size, width) if stage == parallel.pipeline - 1 else 0
    return RankMemory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        buffers=0 if has_no_bucket else _buffers(config, held, trained) * width,
        activations=activation_bytes(config, stage, width, logits),
        logits=logits,
        step_copy=0 if has_no_bucket else own * state_width,
        host=host,
    )


def fullest_rank(config: Config, vocabulary_size: int) -> tuple[int, RankMemory]:
    """The pipeline stage whose ranks need most, and what they need."""
    stages = {stage: rank_memory(config, vocabulary_size, stage) for stage in range(config.parallel.pipeline)}
    return max(stages.items(), key=lambda item: item[1].total)


def _buffers(config: Config, held: int, trained: int) -> int:
    """Elements of the reduction bucket and, under ZeRO-3, of the gathered weights."""
    gathered = min(held, LIVE_PARAMETERS) if config.zero.stage == 3 else 0
    return min(trained, REDUCE_BUCKET) + gathered
