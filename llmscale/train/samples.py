"""Texts that the model writes in the middle of training, for a reader to judge."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config
from llmscale.data.tokenizer import end_of_document_id, open_encoder
from llmscale.engine.engine import Engine
from llmscale.engine.generate import Generator
from llmscale.engine.sampling import SamplingOptions
from llmscale.runtime.hooks import Sample


@dataclass(frozen=True)
class Prompting:
    """How the model is asked for a text."""

    encode: Callable[[str], Sequence[int]]
    """A prompt → the tokens that the model goes on from."""
    ends: frozenset[int]
    """Tokens that end a text."""

    @classmethod
    def plain(cls, tokenizer: Path) -> "Prompting":
        """The prompt as it stands, and a text up to the end of a document."""
        encoder = open_encoder(tokenizer)
        return cls(
            lambda prompt: encoder.encode(prompt, add_special_tokens=False).ids,
            frozenset((end_of_document_id(tokenizer),)),
        )


@dataclass(frozen=True)
class SampleWriter:
    """Writes a text for each prompt, always with the same draws: only the weights change."""

    prompts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    """Of each prompt."""
    options: SamplingOptions
    tokenizer: Path

    @classmethod
    def of(cls, config: Config, prompting: Prompting | None) -> "SampleWriter | None":
        """As `train.generate` asks; None where it does not.

        Args:
            config: of the run.
            prompting: None: the prompts are plain text.

        Raises:
            InputError: a prompt has no tokens, or leaves no room for a text.
        """
        asked, tokenizer = config.train.generate, config.tokenizer.path
        if asked is None or tokenizer is None:
            return None
        prompting = prompting or Prompting.plain(tokenizer)
        placeholders = [-1 - place for place in range(config.peft.placeholders)]
        tokens = [prompting.encode(prompt) for prompt in asked.prompts]
        _refuse_lengths(config, asked.prompts, [len(placeholders) + len(prompt) for prompt in tokens])
        options = SamplingOptions(asked.max_new_tokens, asked.temperature, end_ids=prompting.ends)
        whole = tuple((*placeholders, *prompt) for prompt in tokens)
        return cls(tuple(asked.prompts), whole, options, tokenizer)

    def write(self, engine: Engine) -> list[Sample]:
        """Collective; the same on every rank."""
        with engine.whole_chunks() as chunks:
            texts = Generator(chunks, engine.world).generate(self.tokens, self.options)
        encoder = open_encoder(self.tokenizer)
        return [Sample(prompt, encoder.decode(text)) for prompt, text in zip(self.prompts, texts)]


def _refuse_lengths(config: Config, prompts: Sequence[str], lengths: Sequence[int]) -> None:
    positions = config.model.max_positions or config.train.sequence_length
    problems = [
        Problem(
            f"train.generate.prompts.{place}",
            prompt,
            f"has {length} tokens; at least 1 and fewer than the model's {positions} positions are needed",
        )
        for place, (prompt, length) in enumerate(zip(prompts, lengths))
        if not 0 < length < positions
    ]
    if problems:
        raise InputError(problems)
