"""Generation: a model goes on with prompts, token by token, under any tensor and pipeline layout.

Needs a model and its World, no optimizer and no DeepSpeed. Prompts of different lengths are padded on the
left, and padding is never seen, so that each text is what it would be alone. Stages pass hidden states on
by plain sends; tensor rank 0 of the last stage chooses the tokens, and all ranks hear of them.

Shapes: S sequence, B rows (prompts), H hidden size, V vocabulary.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed
from torch import Tensor

from llmscale.engine.forward import telling_rank, through_stages
from llmscale.engine.sampling import SamplingOptions, next_tokens
from llmscale.model.attention import KeyValueCache, SelfAttention
from llmscale.model.language_model import LanguageModel
from llmscale.parallel.world import World

OnTokens = Callable[[list[int | None]], None]
"""Called after each step with the new token of each prompt, None for those that have ended."""


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

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], options: SamplingOptions, on_tokens: OnTokens | None = None
    ) -> list[list[int]]:
        """The new tokens of each prompt, the end token included where it came. Collective; all ranks of a
        model replica give the same arguments and get the same result.

        A text ends with one of `options.end_ids`, after `options.max_new_tokens`, or where the positions are
        full.

        Raises:
            ValueError: no prompt, an empty one, or one that leaves no position free.
        """
        self._check(prompts)
        texts = _Texts(prompts, options, self.positions)
        tokens_BS, position_ids_BS, first_B = _left_padded(prompts, self.world.device)
        places = tokens_BS.shape[1] + options.max_new_tokens
        with self.world.active(), _generating(self.chunks, places, len(prompts), first_B):
            for step in range(options.max_new_tokens):
                hidden = self._hidden_states(tokens_BS, position_ids_BS)
                tokens_B = self._choose(hidden, len(prompts), options, step)
                added = texts.add(tokens_B.tolist())
                if on_tokens is not None:
                    on_tokens(added)
                if texts.all_ended:
                    break
                tokens_BS = tokens_B[:, None]
                # Rows that have ended go on unread; their positions must not leave the table.
                position_ids_BS = (position_ids_BS[:, -1:] + 1).clamp(max=self.positions - 1)
        return texts.new_tokens

    @torch.no_grad()
    def next_log_probabilities(
        self, prompts: Sequence[Sequence[int]], tokens: Sequence[int]
    ) -> list[list[float]]:
        """For each prompt the log-probability of each of `tokens` as the next one. Collective, as `generate`.

        Raises:
            ValueError: no prompt, an empty one, or one that leaves no position free.
        """
        self._check(prompts)
        tokens_BS, position_ids_BS, first_B = _left_padded(prompts, self.world.device)
        with self.world.active(), _generating(self.chunks, tokens_BS.shape[1], len(prompts), first_B):
            hidden = self._hidden_states(tokens_BS, position_ids_BS)
            logits_1BV = self.chunks[-1].gathered_logits(hidden) if self.world.is_last_stage else None
            if logits_1BV is None:
                shape = (len(prompts), len(tokens))
                found_BT = torch.empty(shape, dtype=torch.float64, device=self.world.device)
            else:
                found_BT = logits_1BV[0].double().log_softmax(dim=-1)[:, list(tokens)].contiguous()
            if self.world.model_group.size() > 1:
                torch.distributed.broadcast(found_BT, telling_rank(self.world), group=self.world.model_group)
        return found_BT.tolist()

    def _check(self, prompts: Sequence[Sequence[int]]) -> None:
        if not prompts:
            raise ValueError("no prompts")
        for number, prompt in enumerate(prompts):
            if not 0 < len(prompt) < self.positions:
                raise ValueError(
                    f"prompt {number} has {len(prompt)} tokens; must be 1 to {self.positions - 1}"
                )

    def _hidden_states(self, tokens_BS: Tensor, position_ids_BS: Tensor) -> Tensor:
        """Through all chunks of all stages in the model's order; the last token's [1, B, H] on the last
        stage, and nothing of use elsewhere."""
        return through_stages(self.chunks, self.world, tokens_BS, position_ids_BS)[-1:]

    def _choose(self, hidden_1BH: Tensor, batch: int, options: SamplingOptions, step: int) -> Tensor:
        """The next tokens, int64 [B], chosen by one rank and the same on all."""
        logits_1BV = self.chunks[-1].gathered_logits(hidden_1BH) if self.world.is_last_stage else None
        if logits_1BV is None:
            tokens_B = torch.empty(batch, dtype=torch.int64, device=self.world.device)
        else:
            tokens_B = next_tokens(logits_1BV[0], options, step)
        if self.world.model_group.size() > 1:
            torch.distributed.broadcast(tokens_B, telling_rank(self.world), group=self.world.model_group)
        return tokens_B


class _Texts:
    """What has been generated for each prompt, and which have ended."""

    def __init__(self, prompts: Sequence[Sequence[int]], options: SamplingOptions, positions: int) -> None:
        self.new_tokens: list[list[int]] = [[] for _ in prompts]
        self._end_ids = options.end_ids
        self._room = [min(options.max_new_tokens, positions - len(prompt)) for prompt in prompts]

    def add(self, tokens: list[int]) -> list[int | None]:
        """Give each open text its next token; returns them, None for those that had ended."""
        added = [None if self._ended(row) else token for row, token in enumerate(tokens)]
        for text, token in zip(self.new_tokens, added):
            if token is not None:
                text.append(token)
        return added

    @property
    def all_ended(self) -> bool:
        return all(self._ended(row) for row in range(len(self.new_tokens)))

    def _ended(self, row: int) -> bool:
        text = self.new_tokens[row]
        return len(text) >= self._room[row] or (bool(text) and text[-1] in self._end_ids)


def _left_padded(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens and positions, int64 [B, S], and where each row begins, [B]; None where all begin at 0."""
    longest = max(map(len, prompts))
    first = [longest - len(prompt) for prompt in prompts]
    rows = [[0] * padding + list(prompt) for padding, prompt in zip(first, prompts)]
    tokens_BS = torch.tensor(rows, dtype=torch.int64, device=device)
    places_S = torch.arange(longest, device=device)
    if not any(first):
        return tokens_BS, places_S.expand(len(prompts), -1), None
    first_B = torch.tensor(first, device=device)
    return tokens_BS, (places_S - first_B[:, None]).clamp(min=0), first_B


@contextlib.contextmanager
def _generating(
    chunks: Sequence[LanguageModel], places: int, batch: int, first_B: Tensor | None
) -> Iterator[None]:
    """Dropout off, and a cache of `places` tokens a row in every layer; afterwards all as it was."""
    training = [chunk.training for chunk in chunks]
    for chunk in chunks:
        chunk.eval()
        for attention in _attentions(chunk):
            shape = (places, batch, attention.kv_heads, attention.head_size)
            keys, values = (
                torch.empty(shape, dtype=chunk.config.params_dtype, device=chunk.world.device)
                for _ in range(2)
            )
            attention.cache = KeyValueCache(keys, values, first_B)
    try:
        yield
    finally:
        for chunk, mode in zip(chunks, training):
            chunk.train(mode)
            for attention in _attentions(chunk):
                attention.cache = None


def _attentions(chunk: LanguageModel) -> list[SelfAttention]:
    return [module for module in chunk.modules() if isinstance(module, SelfAttention)]
