"""Generation: a model goes on with prompts, token by token, under any tensor and pipeline layout.

Needs a model and its World, no optimizer and no DeepSpeed. Prompts are padded at their ends, where causal
attention does not look, and afterwards each row has its own length: each text is what it would be alone. A
row whose text has ended is given up at once, and a prompt that waits takes its turn. Stages pass hidden
states on by plain sends; tensor rank 0 of the last stage chooses the tokens, and all ranks hear of them.

Shapes: S sequence, B rows, U different prompts, H hidden size, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed
from torch import Tensor

from llmscale.engine.caches import Caches, opened_caches
from llmscale.engine.forward import telling_rank, through_stages
from llmscale.engine.sampling import SamplingOptions, draw, uniform
from llmscale.engine.texts import Request, Rows, Text
from llmscale.model.language_model import LanguageModel
from llmscale.model.packed import packed_weights
from llmscale.model.step import step
from llmscale.parallel.world import World

OnTokens = Callable[[list[int | None]], None]
"""Called after each step with the new token of each prompt, None for those that got none."""

MOST_PROMPT_TOKENS = 1 << 15
"""That go through the model at once."""
FULLNESS = 0.7
"""Part of the longest prompt that goes through the model with others which each of these has, at least."""
BEGIN_TOGETHER = 8
"""Texts that begin behind others do so when there is room for a batch's part of so many."""


class Generator:
    """Texts from the model whose chunks this rank holds.

    Args:
        chunks: this rank's, in order; on `world`'s device.
        world: their layout, without sequence parallelism: a single token cannot be split.
    """

    def __init__(self, chunks: Sequence[LanguageModel], world: World) -> None:
        if world.layout.sequence:
            raise ValueError("generation needs a layout without sequence parallelism")
        self.chunks = chunks
        self.world = world
        first = chunks[0]
        # Learned positions cannot be extended, so a prefix takes some of them.
        self.positions = first.max_sequence_length - (
            first.first_position if first.rotary_table is None else 0
        )
        """Tokens that prompt and continuation may have together, virtual ones included."""

    def generate(
        self, prompts: Sequence[Sequence[int]], options: SamplingOptions, on_tokens: OnTokens | None = None
    ) -> list[list[int]]:
        """The new tokens of each prompt, all at once, the end token included where it came. Collective; all
        ranks of a model replica give the same arguments and get the same result.

        A text ends with one of `options.end_ids`, after `options.max_new_tokens`, or where the positions are
        full.

        Raises:
            ValueError: no prompt, an empty one, or one that leaves no position free.
        """
        requests = [
            Request(prompt, options.seed + row, options.max_new_tokens) for row, prompt in enumerate(prompts)
        ]
        return [text.tokens for text in self.write(requests, options, max(len(requests), 1), on_tokens)]

    @torch.no_grad()
    def write(
        self,
        requests: Sequence[Request],
        options: SamplingOptions,
        batch: int,
        on_tokens: OnTokens | None = None,
    ) -> list[Text]:
        """A text for each request, at most `batch` at a time. Collective, as `generate`.

        Args:
            options: seed and length are those of each request.

        Raises:
            ValueError: as `generate`.
        """
        self._check([request.tokens for request in requests])
        rows = Rows(requests, options.end_ids, self.positions, batch)
        places = min(
            self.positions, max(len(request.tokens) + request.max_new_tokens for request in requests)
        )
        with (
            self.world.active(),
            opened_caches(self.chunks, min(batch, len(requests)), places) as caches,
            packed_weights(self.chunks, min(batch, len(requests))),
        ):
            while not rows.is_done:
                first = len(rows)
                admitted = rows.admit(max(1, batch // BEGIN_TOGETHER), MOST_PROMPT_TOKENS)
                if admitted:
                    prompts = [requests[number].tokens for number in admitted]
                    hidden, places_B = self._begin(prompts, caches, first)
                else:
                    first = 0
                    hidden, places_B = self._step(rows, caches), None
                tokens, log_probabilities = self._choose(hidden, places_B, options, rows, first)
                added, moving, targets = rows.add(first, tokens, log_probabilities)
                caches.move(moving, targets)
                if on_tokens is not None:
                    on_tokens(added)
        return rows.texts

    @torch.no_grad()
    def next_log_probabilities(
        self, prompts: Sequence[Sequence[int]], tokens: Sequence[int]
    ) -> list[list[float]]:
        """For each prompt the log-probability of each of `tokens` as the next one. Collective, as `generate`.

        Raises:
            ValueError: no prompt, an empty one, or one that leaves no position free.
        """
        self._check(prompts)
        with self.world.active(), opened_caches(self.chunks, 0, 0):
            hidden = self._after(prompts)
            logits_1BV = self.chunks[-1].gathered_logits(hidden) if self.world.is_last_stage else None
            if logits_1BV is None:
                shape = (len(prompts), len(tokens))
                found_BT = torch.empty(shape, dtype=torch.float64, device=self.world.device)
            else:
                found_BT = logits_1BV[0].double().log_softmax(dim=-1)[:, list(tokens)].contiguous()
            self._tell(found_BT)
        return found_BT.tolist()

    def _check(self, prompts: Sequence[Sequence[int]]) -> None:
        if not prompts:
            raise ValueError("no prompts")
        for number, prompt in enumerate(prompts):
            if not 0 < len(prompt) < self.positions:
                raise ValueError(
                    f"prompt {number} has {len(prompt)} tokens; must be 1 to {self.positions - 1}"
                )

    def _begin(
        self, prompts: Sequence[Sequence[int]], caches: Caches, first_row: int
    ) -> tuple[Tensor, list[int]]:
        """New rows from `first_row` on. Prompts that are the same go through the model once: their last
        hidden states, [1, U, H], and of each row which of them is its own."""
        rows_of: dict[tuple[int, ...], list[int]] = {}
        for row, prompt in enumerate(prompts, first_row):
            rows_of.setdefault(tuple(prompt), []).append(row)
        places = [0] * len(prompts)
        hidden: list[Tensor] = []
        different = sorted(rows_of, key=len)
        for number, prompt in enumerate(different):
            for row in rows_of[prompt]:
                places[row - first_row] = number
        for group in _of_like_length(different):
            pairs = [(row, place) for place, prompt in enumerate(group) for row in rows_of[prompt]]
            caches.begin(*zip(*pairs))
            hidden.append(self._after(group))
        return torch.cat(hidden, dim=1), places

    def _after(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """The hidden state of each prompt's last token, [1, U, H], on the last stage; on others something of
        that shape."""
        longest = max(map(len, prompts))
        padded = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
        tokens_US = torch.tensor(padded, device=self.world.device)
        position_ids_US = torch.arange(longest, device=self.world.device).expand(len(prompts), -1)
        hidden_SUH = through_stages(self.chunks, self.world, tokens_US, position_ids_US)
        if not self.world.is_last_stage:
            return hidden_SUH[-1:]
        lasts_U = torch.tensor([len(prompt) - 1 for prompt in prompts], device=self.world.device)
        return hidden_SUH[lasts_U, torch.arange(len(prompts), device=self.world.device)][None]

    def _step(self, rows: Rows, caches: Caches) -> Tensor:
        """The hidden state of the last token of every row, [1, B, H], on the last stage."""
        positions = rows.last_positions
        tokens_B1, positions_B1 = (
            torch.tensor(numbers, device=self.world.device)[:, None]
            for numbers in (rows.last_tokens, positions)
        )
        caches.step(positions_B1[:, 0], max(positions))
        return through_stages(self.chunks, self.world, tokens_B1, positions_B1, step)

    def _choose(
        self,
        hidden: Tensor,
        places_B: list[int] | None,
        options: SamplingOptions,
        rows: Rows,
        first: int,
    ) -> tuple[list[int], list[float]]:
        """The next tokens of rows from `first` on and their log-probabilities, chosen by one rank and the
        same on all.

        Args:
            hidden: [1, B, H] on the last stage.
            places_B: of each row its place in `hidden`; None: they are the same.
        """
        logits_1BV = self.chunks[-1].gathered_logits(hidden) if self.world.is_last_stage else None
        if logits_1BV is None:
            shape = (2, len(rows) - first)
            chosen_2B = torch.empty(shape, dtype=torch.float64, device=self.world.device)
        else:
            logits_BV = logits_1BV[0] if places_B is None else logits_1BV[0, places_B]
            uniforms = [uniform(seed, number) for seed, number in rows.seeds(first)]
            drawn = draw(logits_BV, options, uniforms)
            chosen_2B = torch.stack((drawn.tokens_B.double(), drawn.log_probabilities_B))
        self._tell(chosen_2B)
        tokens, log_probabilities = chosen_2B.tolist()
        return [int(token) for token in tokens], log_probabilities

    def _tell(self, found: Tensor) -> None:
        """From the rank that knows to all ranks of the replica."""
        if self.world.model_group.size() > 1:
            torch.distributed.broadcast(found, telling_rank(self.world), group=self.world.model_group)


def _of_like_length(prompts: Sequence[tuple[int, ...]]) -> Iterator[Sequence[tuple[int, ...]]]:
    """Groups of prompts that are sorted by length, of which at most a part is padding."""
    first = 0
    for place, prompt in enumerate(prompts):
        if len(prompts[first]) < FULLNESS * len(prompt):
            yield prompts[first:place]
            first = place
    yield prompts[first:]
