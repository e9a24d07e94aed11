"""The config of `llmscale data label`: a YAML file of its own, with `key=value` overrides."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from llmscale.config.endpoint import EndpointSection, endpoint_problems
from llmscale.config.load import as_problem
from llmscale.config.problems import InputError, Problem
from llmscale.config.section import NonNegativeFloat, PositiveInt, Section
from llmscale.config.tree import apply_override, read_tree
from llmscale.data.label.template import template_faults


class RespondentSection(EndpointSection):
    """Who answers: an OpenAI-compatible endpoint, or a model here."""

    model: str | None = None
    """In place of an endpoint: a run, a checkpoint, or a Hugging Face folder."""
    root: Path = Path("runs")
    """Of a model here: folder that holds the run folders."""
    tokenizer: Path | None = None
    """Of a model here: its tokenizer, where it is not beside it."""
    tensor: PositiveInt = 1
    """Of a model here: ranks that share each matrix."""
    pipeline: PositiveInt = 1
    """Of a model here: stages that the layers are cut into."""
    batch: PositiveInt = 8
    """Of a model here: texts worked on together."""


class WordsSection(Section):
    """What the judge says."""

    first: str = "A"
    second: str = "B"
    tie: str | None = "C"
    """Null: it must choose."""
    marker: str | None = None
    """What stands before the verdict (`"Verdict:"`) of a judge that thinks aloud. Null: it begins with it."""

    def spoken(self) -> list[str]:
        return [word for word in (self.first, self.second, self.tie) if word is not None]


class JudgeSection(RespondentSection):
    system: str | None = None
    """What the system message says."""
    template: str
    """Jinja of the question: `prompt`, `first`, `second`, `constitution` (a list), `words`."""
    words: WordsSection = WordsSection()
    log_probabilities: bool = True
    """Ask for the log-probability of the verdict; where it comes, it is used."""


class CandidatesSection(RespondentSection):
    """A model that answers the prompts of records that have only those."""

    system: str | None = None
    count: Annotated[int, Field(ge=2)] = 2
    """Answers to each prompt; every two different ones are compared."""
    temperature: NonNegativeFloat = 1.0
    max_tokens: PositiveInt = 512


class LabelConfig(Section):
    records: Path
    """File of records, or `hf:NAME[:SPLIT]`: `prompt` (or `instruction`), and `chosen` and `rejected` (a
    human's choice), or `responses` with or without `ranks` (a human's), or nothing more, with
    `candidates`."""
    fields: dict[str, str] = {}
    """What the fields of the records are called: `{prompt: question}`."""
    output: Path
    """Folder of what is made: preferences.jsonl, ties.jsonl, left_out.jsonl, card.md, card.json, and
    answers.jsonl, in which each answer is kept as it comes."""
    constitution: list[str] = []
    """Principles that the template may name."""
    one_principle: bool = False
    """Each pair is judged by one principle, drawn for it (arXiv:2212.08073), in place of by all."""
    both_orders: bool = True
    """Ask with each answer in the first place, against the judge's liking for a place. Without: one order,
    drawn for each pair."""
    reconcile: Literal["agree", "mean"] = "agree"
    """agree: a tie unless both orders name the same winner. mean: the one of higher mean probability wins."""
    tie_below: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Of `mean`: a tie where the two mean probabilities differ by less."""
    judge: JudgeSection
    candidates: CandidatesSection | None = None


def load_label_config(path: Path, overrides: Sequence[str] = ()) -> LabelConfig:
    """
    Raises:
        InputError: with every problem of the file, the overrides and their combination.
    """
    tree = read_tree(path, "keys, such as `records: my/prompts.jsonl`")
    problems = [problem for override in overrides if (problem := apply_override(tree, override))]
    try:
        config = LabelConfig.model_validate(tree)
    except ValidationError as error:
        raise InputError([*problems, *(as_problem(one, LabelConfig) for one in error.errors())]) from None
    problems += _problems(config)
    if problems:
        raise InputError(problems)
    return config


def _problems(config: LabelConfig) -> Iterator[Problem]:
    yield from _respondent_problems("judge", config.judge)
    if config.candidates is not None:
        yield from _respondent_problems("candidates", config.candidates)
        if config.candidates.temperature == 0:
            message = "always gives the same answer; set it above 0"
            yield Problem("candidates.temperature", 0, message)
    for fault in template_faults(config.judge.template):
        yield Problem("judge.template", "", fault)
    words = config.judge.words.spoken()
    if len(set(words)) < len(words) or not all(word.isalnum() for word in words):
        message = "must be different words of letters and digits; signs around them are read over"
        yield Problem("judge.words", ", ".join(words), message)
    if config.one_principle and not config.constitution:
        yield Problem("one_principle", True, "draws from `constitution`, which has none; write some")
    if config.output.exists() and not config.output.is_dir():
        yield Problem("output", config.output, "is a file; name a folder")


def _respondent_problems(name: str, section: RespondentSection) -> Iterator[Problem]:
    if (section.endpoint is None) == (section.model is None):
        message = "set either endpoint (an address) or model (a run, a checkpoint, a Hugging Face folder)"
        yield Problem(name, "", message)
    if section.endpoint is not None:
        yield from endpoint_problems(name, section)
