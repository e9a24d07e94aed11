"""A model here as the judge of answers, or as the one that gives them.

Of a verdict it is not what the model says that is read but how likely it finds each word: one pass over the
question, and one more over what it has thought aloud.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pydantic import JsonValue

from llmscale.checkpoint.base import identity_of
from llmscale.checkpoint.errors import CheckpointError
from llmscale.config.problems import InputError, Problem
from llmscale.data.chat.conversation import BadRecord
from llmscale.data.chat.encode import chat_encoder
from llmscale.data.label.answers import Answer, Question
from llmscale.data.label.options import RespondentSection, WordsSection
from llmscale.data.label.respondent import Refused, RespondentFailed
from llmscale.data.tokenizer import open_encoder, tokenizer_hash
from llmscale.engine.sampling import SamplingOptions
from llmscale.run.generate import Writer, open_writer
from llmscale.run.rank_team import RanksFailed
from llmscale.run.target import Target, find_model, is_hugging_face


class ModelHere:
    """
    Args:
        words: of a judge whose probabilities are wanted.

    Raises:
        InputError: the model's tokenizer or weights cannot be used so.
    """

    at_a_time = 1

    def __init__(self, section: RespondentSection, words: WordsSection | None, target: Target) -> None:
        self.batch = section.batch
        self._section = section
        self._words = words
        self._target = replace(target, weights=_weights(target, section.root))
        self._chat = chat_encoder(target.config, target.tokenizer, target.positions)
        self._encoder = open_encoder(target.tokenizer)
        self._word_tokens = {word: self._tokens_of(word) for word in (words.spoken() if words else [])}
        self._writer: Writer | None = None
        self.identity: JsonValue = {
            "weights": identity_of(self._target.weights),
            "tokenizer": tokenizer_hash(target.tokenizer),
            "template": self._chat.template.source,
            "temperature": section.temperature,
            "max_tokens": section.max_tokens,
            "words": words.model_dump() if words else None,
        }

    @contextmanager
    def opened(self) -> Iterator[None]:
        try:
            with open_writer(self._target) as self._writer:
                yield
        except (CheckpointError, RanksFailed) as error:
            raise RespondentFailed(f"{self._target.weights}: {error}") from None
        finally:
            self._writer = None

    def answer(self, questions: Sequence[Question]) -> list[Answer | Refused]:
        """
        Raises:
            RespondentFailed: a rank has ended.
        """
        prompts = [self._prompt(one) for one in questions]
        asked = [
            (one.key, prompt) for one, prompt in zip(questions, prompts) if not isinstance(prompt, Refused)
        ]
        try:
            answers = iter(self._answers(asked) if asked else [])
        except RanksFailed as error:
            raise RespondentFailed(str(error)) from None
        return [prompt if isinstance(prompt, Refused) else next(answers) for prompt in prompts]

    def _prompt(self, question: Question) -> list[int] | Refused:
        try:
            prompt = self._chat.prompt(question.messages)
        except BadRecord as error:
            return Refused(str(error))
        room = self._target.positions - self._section.max_tokens
        if len(prompt) > room:
            return Refused(f"{len(prompt):,} tokens, where an answer leaves room for {room:,}")
        return prompt

    def _answers(self, asked: Sequence[tuple[str, list[int]]]) -> list[Answer]:
        if self._words is None:
            return self._written(asked)
        if self._words.marker is None:
            return self._judged([prompt for _, prompt in asked], [""] * len(asked))
        thoughts = [_until(answer.text, self._words.marker) for answer in self._written(asked)]
        return self._judged([prompt for _, prompt in asked], thoughts)

    def _written(self, asked: Sequence[tuple[str, list[int]]]) -> list[Answer]:
        assert self._writer is not None
        stops = self._chat.stops
        # By its key: which other texts a text is drawn beside must not make it like another one's.
        options = SamplingOptions(
            self._section.max_tokens,
            self._section.temperature,
            seed=int(asked[0][0][:12], 16),
            end_ids=frozenset(stops),
        )
        texts = self._writer.generate([prompt for _, prompt in asked], options)
        return [
            Answer(
                self._encoder.decode([token for token in text if token not in stops]).strip(),
                "stop" if text and text[-1] in stops else "length",
                len(prompt),
                len(text),
            )
            for (_, prompt), text in zip(asked, texts)
        ]

    def _judged(self, prompts: Sequence[Sequence[int]], thoughts: Sequence[str]) -> list[Answer]:
        """The likeliest word after each prompt and what the model has thought of it."""
        assert self._writer is not None
        said = [self._encoder.encode(thought, add_special_tokens=False).ids for thought in thoughts]
        wanted = [token for tokens in self._word_tokens.values() for token in tokens]
        found = self._writer.next_log_probabilities(
            [[*prompt, *tokens] for prompt, tokens in zip(prompts, said)], wanted
        )
        return [
            self._verdict(thought, len(prompt), len(tokens), dict(zip(wanted, row)))
            for thought, prompt, tokens, row in zip(thoughts, prompts, said, found)
        ]

    def _verdict(self, thought: str, prompt_tokens: int, said: int, values: dict[int, float]) -> Answer:
        spelled = {
            f"{' ' * place}{word}": values[token]
            for word, tokens in self._word_tokens.items()
            for place, token in enumerate(tokens)
        }
        best = max(
            self._word_tokens, key=lambda word: max(values[token] for token in self._word_tokens[word])
        )
        return Answer(f"{thought} {best}".strip(), "stop", prompt_tokens, said + 1, spelled)

    def _tokens_of(self, word: str) -> list[int]:
        """The token that is this word, and the one that is it after a blank.

        Raises:
            InputError: it takes several.
        """
        spelled = [self._encoder.encode(text, add_special_tokens=False).ids for text in (word, f" {word}")]
        found = list(dict.fromkeys(ids[0] for ids in spelled if len(ids) == 1))
        if found:
            return found
        message = "is no single token of the judge's model; choose another word, or log_probabilities=false"
        raise InputError([Problem("judge.words", word, message)])


def _until(text: str, marker: str) -> str:
    """What was thought, and the marker, which is put there where the model has not come to it."""
    return text[: text.rfind(marker) + len(marker)] if marker in text else f"{text}\n{marker}"


def _weights(target: Target, root: Path) -> Path:
    """One checkpoint or folder: a run may go on."""
    if is_hugging_face(target.weights):
        return target.weights
    return find_model(str(target.weights), root).checkpoint.path
