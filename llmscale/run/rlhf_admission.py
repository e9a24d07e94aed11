"""What stands against a run of reinforcement learning, told before anything starts. No torch.

Functions of rewards are imported once, in a subprocess, as they will be in the run.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path

from llmscale.config.problems import InputError, Problem
from llmscale.config.rlhf_roles import needed_roles, role_config
from llmscale.config.schema import Config
from llmscale.data.chat.conversation import BadRecord
from llmscale.data.chat.encode import ChatEncoder, chat_encoder
from llmscale.data.prompt_records import Prompt, PromptReader
from llmscale.data.records import Unreadable, record_source
from llmscale.data.sources import HUB_PREFIX, BadText
from llmscale.rlhf.conversations.continuation import Continuation
from llmscale.rlhf.conversations.environments import setup_problems as environment_problems
from llmscale.rlhf.rewards.checks import FIRST, field_problems, setup_problems
from llmscale.run.beginnings import check_init_from, check_scorer


def check_rlhf(config: Config, before: Mapping[Path, Config]) -> list[Problem]:
    """Problems of the rewards, of what they ask of the records, and of where critic and reward model begin.

    Args:
        before: run folders that other runs will have filled by then.
    """
    environment = config.rlhf.environment
    return [
        *(environment_problems(environment) if environment is not None else ()),
        *(_template_problems(config) if environment is not None else ()),
        *setup_problems(config.rlhf.rewards),
        *field_problems(config.rlhf.rewards, _first_prompts(config)),
        *_beginnings(config, before),
    ]


def _encoder(config: Config) -> ChatEncoder | None:
    """None where what is wrong with tokenizer or template is told elsewhere."""
    tokenizer = config.tokenizer.path
    if tokenizer is None:
        return None
    try:
        return chat_encoder(config, tokenizer, config.train.sequence_length)
    except InputError:
        return None


def _template_problems(config: Config) -> Iterator[Problem]:
    """A conversation goes on with the tokens that were written."""
    encoder = _encoder(config)
    if encoder is None:
        return
    try:
        Continuation(encoder)
    except InputError as error:
        yield from error.problems


def _first_prompts(config: Config) -> list[Prompt]:
    """Of the sources that can be read at once; what is wrong with the others is told elsewhere."""
    encoder = _encoder(config)
    if encoder is None:
        return []
    reader = PromptReader(encoder, config.train.sequence_length, config.rlhf.prompts == "text")
    found: list[Prompt] = []
    for entry in (*config.data.train, *config.data.validation):
        if str(entry.path).startswith(HUB_PREFIX):
            continue
        with suppress(BadText, OSError):
            for line, record in islice(record_source(entry.path), FIRST):
                if isinstance(record, Unreadable):
                    continue
                with suppress(BadRecord):
                    found.append(reader.read(record, entry.fields, f"{entry.path}, line {line}"))
    return found


def _beginnings(config: Config, before: Mapping[Path, Config]) -> Iterator[Problem]:
    """The actor's is told as that of every run."""
    needed, roles = needed_roles(config), config.rlhf.roles
    scorer = roles.reward.init_from if "reward" in needed else None
    if scorer is not None:
        found = list(check_scorer(config, scorer, "rlhf.roles.reward.init_from", before))
        yield from found
        if found:
            return  # a critic that is left to begin there could not either
    for role in ("critic", "reference"):
        own = role_config(config, role) if role in needed else config
        if own.train.init_from == config.train.init_from:
            continue
        key = f"rlhf.roles.{role}.init_from"
        for problem in check_init_from(own, before):
            told = problem.message.replace("train.init_from", key)
            yield Problem(problem.key.replace("train.init_from", key), problem.value, told)
