"""`llmscale generate`: let a trained model write."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from tokenizers import Tokenizer

from llmscale.checkpoint.errors import CheckpointError
from llmscale.commands.quiet import silence_import_warnings
from llmscale.config.problems import InputError, Problem
from llmscale.data.tokenizer import end_of_document_id, open_encoder
from llmscale.run.target import Target, find_target
from llmscale.runtime.rank_variables import prepare_environment
from llmscale.runtime.ranks import start_server

if TYPE_CHECKING:
    from llmscale.data.chat.encode import ChatEncoder
    from llmscale.engine.sampling import SamplingOptions
    from llmscale.run.generate import Writer

ROWS_AT_ONCE = 16
"""Prompts that are worked on together where there are many."""

console = Console(stderr=True)


def generate(
    target: Annotated[
        str, typer.Argument(help="Run folder, run name, or checkpoint folder.", show_default=False)
    ],
    prompt: Annotated[
        str | None,
        typer.Argument(help="What the text begins with. Left out: read from standard input, one a line."),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="The prompt is what a user says, put into the chat template that the run was tuned with, or "
            "the tokenizer's own; only the answer is written.",
        ),
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest continuation.")] = 100,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Below 1 keeps to what is likely; 0 is --greedy.")
    ] = 0.8,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Only the likeliest tokens of this probability together.")
    ] = 0.95,
    top_k: Annotated[int | None, typer.Option(min=1, help="Only the k likeliest tokens.")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest token.")] = False,
    seed: Annotated[int, typer.Option(help="The same seed writes the same text.")] = 0,
    tensor: Annotated[int, typer.Option(min=1, help="Ranks that share each matrix.")] = 1,
    pipeline: Annotated[int, typer.Option(min=1, help="Stages that the layers are cut into.")] = 1,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Tokenizer folder, where the run's config names none or it has moved.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="Of a run with PEFT: where its base is, if it has moved.")
    ] = None,
    root: Annotated[Path, typer.Option("--root", help="Folder that holds the run folders.")] = Path("runs"),
) -> None:
    """Let a trained model write: the text goes to standard output as it comes.

    Several prompts (lines of a pipe) are worked on together, and their texts follow each other with a line
    `---` between them.
    """
    if top_p == 0:
        raise InputError([Problem("--top-p", top_p, "must be above 0; for the likeliest token use --greedy")])
    found = find_target(target, root, tokenizer, tensor, pipeline, base)
    scribe = Scribe(found, _chat_encoder(found) if chat else None)
    batches = _batches(prompt, scribe)
    prepare_environment(found.ranks, found.config.cluster.threads)
    silence_import_warnings()
    if found.ranks > 1:
        start_server(["llmscale.run.generate"])
    with console.status(f"loading {found.weights}"):
        from llmscale.engine.sampling import SamplingOptions  # noqa: PLC0415 -- loads torch
        from llmscale.run.generate import open_writer  # noqa: PLC0415 -- loads Megatron too
        from llmscale.run.rank_team import RanksFailed  # noqa: PLC0415

    options = SamplingOptions(
        max_new_tokens, 0.0 if greedy else temperature, top_k, top_p, seed, scribe.end_ids
    )
    try:
        with console.status(f"loading {found.weights}") as status, open_writer(found) as writer:
            status.stop()
            _write(writer, scribe, batches, options)
    except (CheckpointError, RanksFailed) as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from None


def _chat_encoder(target: Target) -> "ChatEncoder":
    """
    Raises:
        InputError: there is no such chat template any more.
    """
    from llmscale.data.chat.encode import chat_encoder  # noqa: PLC0415 -- loads transformers

    return chat_encoder(target.config, target.tokenizer, target.positions)


@dataclass(frozen=True)
class Prompt:
    text: str
    """What is shown of it before the text that the model writes."""
    tokens: list[int]


class Scribe:
    """Between text and tokens.

    Args:
        chat: what puts a user's words into a chat template; None: they are the beginning of the text.
    """

    def __init__(self, target: Target, chat: "ChatEncoder | None" = None) -> None:
        self._encoder: Tokenizer = open_encoder(target.tokenizer)
        self._positions = target.positions
        self._chat = chat
        self._end_id = end_of_document_id(target.tokenizer)
        self.end_ids = frozenset(chat.stops if chat else (self._end_id,))

    def prompt(self, text: str) -> Prompt:
        """An empty one begins as a document does: after the end of another.

        Raises:
            InputError: it leaves the model no room.
        """
        if self._chat is None:
            tokens = self._encoder.encode(text, add_special_tokens=False).ids or [self._end_id]
        else:
            tokens = self._chat.prompt([{"role": "user", "content": text}])
        if len(tokens) >= self._positions:
            brief = text if len(text) <= 40 else text[:37] + "..."
            message = f"has {len(tokens):,} tokens; the model takes {self._positions:,}, its own included"
            raise InputError([Problem("PROMPT", brief, message)])
        return Prompt("" if self._chat else text, tokens)

    def continuation(self, prompt: Prompt) -> "Continuation":
        return Continuation(self._encoder, prompt)

    def is_full(self, prompt: Prompt, new_tokens: Sequence[int]) -> bool:
        return len(prompt.tokens) + len(new_tokens) >= self._positions


class Continuation:
    """Text from tokens as they come: a character of several tokens appears with the last of them.

    Bytes that are no text come out as U+FFFD. (`tokenizers.decoders.DecodeStream` raises at them, and an
    untrained model writes many.)
    """

    def __init__(self, encoder: Tokenizer, prompt: Prompt) -> None:
        self._encoder = encoder
        self._tokens = list(prompt.tokens)
        """Those shown last, on which the look of the next may depend, and those not shown yet."""
        self._shown = len(self._tokens)

    def add(self, token: int) -> str:
        self._tokens.append(token)
        text = self.rest()
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._tokens = self._tokens[self._shown :]
        self._shown = len(self._tokens)
        return text

    def rest(self) -> str:
        """What has not been shown, whole characters or not."""
        return self._decode(self._tokens)[len(self._decode(self._tokens[: self._shown])) :]

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._encoder.decode(tokens, skip_special_tokens=True)


def _batches(prompt: str | None, scribe: Scribe) -> Iterator[list[Prompt]]:
    """The prompts to work on together: the one given, the lines of a pipe, or one at a time from a person.

    Those that are known now are checked now.
    """
    if prompt is not None:
        return iter([[scribe.prompt(prompt)]])
    if sys.stdin.isatty():
        return _asked(scribe)
    prompts = [scribe.prompt(line) for line in sys.stdin.read().splitlines()]
    if not prompts:
        raise InputError([Problem("PROMPT", "", "is not given, and standard input is empty")])
    return iter([prompts[row : row + ROWS_AT_ONCE] for row in range(0, len(prompts), ROWS_AT_ONCE)])


def _asked(scribe: Scribe) -> Iterator[list[Prompt]]:
    while True:
        try:
            text = console.input("[bold]prompt[/bold] (Ctrl-D ends)> ")
        except EOFError:
            return
        try:
            yield [scribe.prompt(text)]
        except InputError as error:
            console.print(str(error), style="red", markup=False)


def _write(
    writer: "Writer", scribe: Scribe, batches: Iterator[list[Prompt]], options: "SamplingOptions"
) -> None:
    """Print every text, and the speed after each batch."""
    written = 0
    for batch in batches:
        began = time.perf_counter()
        if written:
            print("---")
        if len(batch) == 1:
            texts = [_stream(writer, scribe, batch[0], replace(options, seed=options.seed + written))]
        else:
            texts = _together(writer, scribe, batch, replace(options, seed=options.seed + written))
        seconds = time.perf_counter() - began
        _print_speed(sum(map(len, texts)), seconds)
        if any(scribe.is_full(prompt, text) for prompt, text in zip(batch, texts)):
            console.print("a text ended where the model's positions are full", style="dim")
        written += len(batch)


def _stream(writer: "Writer", scribe: Scribe, prompt: Prompt, options: "SamplingOptions") -> list[int]:
    """One text, printed as it comes."""
    continuation = scribe.continuation(prompt)

    def show(tokens: list[int | None]) -> None:
        if tokens[0] is not None:
            print(continuation.add(tokens[0]), end="", flush=True)

    print(prompt.text, end="", flush=True)
    text = writer.generate([prompt.tokens], options, show)[0]
    print(continuation.rest(), flush=True)
    return text


def _together(
    writer: "Writer", scribe: Scribe, batch: list[Prompt], options: "SamplingOptions"
) -> list[list[int]]:
    """Several texts, each printed when all are done."""
    texts = writer.generate([prompt.tokens for prompt in batch], options)
    whole: list[str] = []
    for prompt, text in zip(batch, texts):
        continuation = scribe.continuation(prompt)
        whole.append(prompt.text + "".join(map(continuation.add, text)) + continuation.rest())
    print("\n---\n".join(whole), flush=True)
    return texts


def _print_speed(tokens: int, seconds: float) -> None:
    console.print(f"{tokens} tokens in {seconds:.2f} s: {tokens / seconds:.0f} tokens/s", style="dim")
