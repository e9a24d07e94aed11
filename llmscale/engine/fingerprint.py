"""What a model says to one fixed batch: stored with each checkpoint, and computed again under any layout.

Hashes prove that a checkpoint's bytes are those that were written. The fingerprint shows that they are the
model that was trained: weights that were changed before they were hashed, or that are read the wrong way
round, give another one. It looks at the weights only, and at no embedding row of a token outside the batch.

Shapes: B = 1 sequence of S tokens, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.distributed
from pydantic import JsonValue
from torch import Tensor

from llmscale.data.batch import Batch
from llmscale.engine.schedule import ScheduledChunk, run_schedule
from llmscale.model.language_model import LanguageModel
from llmscale.objectives.objective import Objective
from llmscale.parallel.rng import derived_seed, preserved
from llmscale.parallel.world import World

KEY = "fingerprint"
"""Of a checkpoint's progress, where it is stored."""
SEED = "fingerprint-1"
"""Part of what is stored: to change how tokens or figures come about, change it."""
MOST_TOKENS = 128

TOLERANCES = {"fp64": 1e-12, "fp32": 1e-5, "bf16": 2e-2}
"""How far figures of the same weights may lie apart, relative, under another layout or on another machine.

Sums are taken in another order there, and each has 53, 24 or 8 bits. Layouts of one machine lie within a
tenth of the first two, as `tests/engine/test_fingerprint.py` asserts; the rest is for other matrix libraries
and deeper models."""


@dataclass(frozen=True)
class Fingerprint:
    """The figures, and what they were computed from."""

    seed: str
    sequence_length: int
    """The model's, of which at most `MOST_TOKENS` tokens are used, and virtual ones before them."""
    vocabulary_size: int
    loss: float
    """Mean over the tokens."""
    logit_sum: float
    """Sum over all tokens and the true vocabulary, each token id's logits with a weight of its own, so that
    rows that have changed places show."""
    logit_norm: float
    """Norm of the summed logits of each token id: the scale on which `logit_sum` is compared."""

    def as_json(self) -> dict[str, JsonValue]:
        return asdict(self)

    def differences(self, other: "Fingerprint") -> dict[str, float]:
        """How far each figure of `other` lies from this one's, relative; infinitely far where it is NaN."""
        apart = {
            "loss": (other.loss - self.loss) / self.loss,
            "logit sum": (other.logit_sum - self.logit_sum) / self.logit_norm,
            "logit norm": (other.logit_norm - self.logit_norm) / self.logit_norm,
        }
        return {name: abs(value) if math.isfinite(value) else math.inf for name, value in apart.items()}


@torch.no_grad()
def take_fingerprint(
    chunks: Sequence[ScheduledChunk],
    world: World,
    objective: Objective,
    vocabulary_size: int,
    sequence_length: int,
    placeholders: int = 0,
) -> Fingerprint | None:
    """One forward of one short sequence, with dropout off. Collective; training does not notice it.

    Args:
        chunks: this rank's part of the model, called through the engine where ZeRO has to gather weights.
        world: the layout, not active. Each replica does the same.
        vocabulary_size: true number of tokens.
        sequence_length: the model's.
        placeholders: virtual tokens before the text.

    Returns:
        The same on every rank; None where a figure is not finite.
    """
    tokens = min(sequence_length, MOST_TOKENS + placeholders)
    batch = _batch(tokens, vocabulary_size, world, placeholders)
    goal = objective.for_fingerprint
    # An interleaved pipeline needs as many microbatches as it has stages.
    repeats = world.layout.pipeline if world.layout.interleave > 1 else 1

    def figures(chunk: LanguageModel, logits_SBV: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        sums = _logit_sums(chunk, logits_SBV[:tokens])
        loss = goal.loss_sum(chunk, logits_SBV, batch).double()
        # The loss is the same on all tensor ranks, the sums are of this one's columns.
        return loss, torch.stack([loss if world.coordinates.tensor == 0 else loss * 0, *sums])

    modes = [chunk.module.training for chunk in chunks]
    with world.active(), preserved(world.rng):
        for chunk in chunks:
            chunk.module.eval()
        reports = run_schedule(
            list(chunks),
            world,
            [batch] * repeats,
            figures,
            forward_only=True,
            before_microbatch=lambda _: world.seed(SEED),
        )
        total = torch.zeros(3, dtype=torch.float64, device=world.device)
        if reports and world.coordinates.data == world.coordinates.context == 0:
            total += reports[0]
        torch.distributed.all_reduce(total)
        for chunk, mode in zip(chunks, modes):
            chunk.module.train(mode)
    loss_sum, logit_sum, square = total.tolist()
    if not all(map(math.isfinite, (loss_sum, logit_sum, square))):
        return None
    count = goal.count(batch)
    return Fingerprint(SEED, sequence_length, vocabulary_size, loss_sum / count, logit_sum, math.sqrt(square))


def _batch(tokens: int, vocabulary_size: int, world: World, placeholders: int) -> Batch:
    """Token ids from the seed by hashing, so the same with every version of torch; placeholders in place of
    the first ones. Sequence parallelism wants a length that it can split: what is added at the end does not
    count, and nothing looks forward to it."""
    ids = [derived_seed(SEED, place) % vocabulary_size for place in range(tokens + 1)]
    labels = ids[1:]
    ids[:placeholders] = [-1 - place for place in range(placeholders)]
    padding = [0] * (-tokens % world.layout.tensor if world.layout.sequence else 0)
    device = world.device
    return Batch(
        tokens_BS=torch.tensor([ids[:-1] + padding], device=device),
        labels_BS=torch.tensor([labels + padding], device=device),
        loss_mask_BS=torch.tensor([[1.0] * tokens + [0.0] * len(padding)], device=device),
        position_ids_BS=torch.arange(tokens + len(padding), device=device)[None],
        # Of a head: label 0 is what is to be told at every token.
        targets_BL=torch.zeros(1, tokens, device=device),
    )


def _logit_sums(chunk: LanguageModel, logits_SBV: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sum, and sum of squares, of this tensor rank's columns without padding; float64. Scores of a
    head, which every tensor rank has, are the first one's."""
    first = logits_SBV.shape[-1] * chunk.world.coordinates.tensor
    whole = chunk.true_vocabulary_size if chunk.score is None else logits_SBV.shape[-1]
    columns = max(0, min(logits_SBV.shape[-1], whole - first))
    summed_V = logits_SBV[..., :columns].sum(dim=(0, 1), dtype=torch.float64)
    ids_V = torch.arange(first, first + columns, dtype=torch.float64, device=summed_V.device)
    # The golden angle: no two token ids have the same weight.
    weights_V = torch.cos(1.0 + 2.399963229728653 * ids_V)
    return (summed_V * weights_V).sum(), summed_V.square().sum()
