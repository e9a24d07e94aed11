"""Scores of whole texts by a model with a head, under any tensor and pipeline layout.

Needs a model and its World, no optimizer and no DeepSpeed. Texts of different lengths are padded at their
ends, which no token before looks at, so that each score is what it would be alone.

Shapes: S sequence, B rows (texts).
"""

from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor

from llmscale.engine.forward import telling_rank, through_stages
from llmscale.model.documents import LENGTH_UNIT
from llmscale.model.language_model import LanguageModel
from llmscale.parallel.world import World


class Scorer:
    """The first score of each text, at its last token: the reward, of a reward model.

    Args:
        chunks: this rank's, in order; on `world`'s device, the last one of them with a head.
        world: their layout, without sequence parallelism: texts are of any length.
        placeholders: the model's virtual tokens, which stand before each text.
    """

    def __init__(self, chunks: Sequence[LanguageModel], world: World, placeholders: int = 0) -> None:
        if world.layout.sequence:
            raise ValueError("scoring needs a layout without sequence parallelism")
        self.chunks = chunks
        self.world = world
        self._before = [-1 - place for place in range(placeholders)]
        first = chunks[0]
        prefix = first.first_position if first.rotary_table is None else 0
        self.positions = first.max_sequence_length - prefix - placeholders
        """Tokens that a text may have."""

    @torch.no_grad()
    def scores(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """[B], float32 (float64 of a model in that), on the world's device. Collective; all ranks of a model
        replica give the same texts and get the same scores. The model is left as it was.

        Raises:
            ValueError: no text, an empty one, or one that is too long.
        """
        self._check(texts)
        rows = [[*self._before, *text] for text in texts]
        tokens_BS, position_ids_BS = self._padded(rows)
        modes = [chunk.training for chunk in self.chunks]
        with self.world.active():
            for chunk in self.chunks:
                chunk.eval()
            hidden = through_stages(self.chunks, self.world, tokens_BS, position_ids_BS)
            scores_B = self._told(hidden, [len(row) - 1 for row in rows])
        for chunk, mode in zip(self.chunks, modes):
            chunk.train(mode)
        return scores_B

    def _check(self, texts: Sequence[Sequence[int]]) -> None:
        if not texts:
            raise ValueError("no texts")
        for number, text in enumerate(texts):
            if not 0 < len(text) <= self.positions:
                raise ValueError(f"text {number} has {len(text)} tokens; must be 1 to {self.positions}")

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Tokens and positions, int64 [B, S]. On CPUs torch makes and keeps a kernel for each length."""
        most = self.positions + len(self._before)
        length = min(most, -(-max(map(len, rows)) // LENGTH_UNIT) * LENGTH_UNIT)
        filled = [[*row, *[0] * (length - len(row))] for row in rows]
        tokens_BS = torch.tensor(filled, dtype=torch.int64, device=self.world.device)
        return tokens_BS, torch.arange(length, device=self.world.device).expand_as(tokens_BS)

    def _told(self, hidden: Tensor, last: Sequence[int]) -> Tensor:
        """[B]: known to the last stage, and told to all."""
        head = self.chunks[-1].score
        dtype = torch.promote_types(self.chunks[0].config.params_dtype, torch.float32)
        scores_B = torch.empty(len(last), dtype=dtype, device=self.world.device)
        if head is not None:
            scores_B = head(hidden)[list(last), range(len(last)), 0].to(dtype).contiguous()
        if self.world.model_group.size() > 1:
            torch.distributed.broadcast(scores_B, telling_rank(self.world), group=self.world.model_group)
        return scores_B
