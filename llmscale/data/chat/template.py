"""Chat templates: the tokenizer's own, one of ours, or a file; rendered as transformers renders them."""

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers.utils.chat_template_utils import render_jinja_template

from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config
from llmscale.config.tuning import SftSection
from llmscale.data.chat.conversation import BadRecord, Message
from llmscale.data.tokenizer import adds_bos, special_tokens

TEMPLATES = Path(__file__).parent / "templates"
OURS = ("plain", "chatml", "llama3", "zephyr")
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

MARK = re.compile(r"\b(?:end)?generation(?=\s*-?%\})")

Span = tuple[int, int]
"""Characters of a text, from and before."""


@dataclass(frozen=True)
class Rendered:
    text: str
    answers: list[Span]
    """Where the template says that an assistant speaks."""


@dataclass(frozen=True)
class ChatTemplate:
    """How a conversation becomes text."""

    name: str
    source: str
    tokens: Mapping[str, str]
    """`bos_token`, `eos_token`, …, as the template names them."""

    @property
    def marks_answers(self) -> bool:
        """It says itself what an assistant speaks."""
        return GENERATION.search(self.source) is not None

    @property
    def file(self) -> str:
        """What `chat_template.jinja` beside the tokenizer holds, for transformers to render the same."""
        begins_without_bos = self.tokens.get("bos_token") == ""
        return f'{{%- set bos_token = "" -%}}\n{self.source}' if begins_without_bos else self.source

    @property
    def file_for_scores(self) -> str:
        """The same for a model that tells something of whole conversations: it is asked at the token that
        ends the last turn, and never at blanks that the template writes after that."""
        # Marks of answers count characters from the beginning, which a block is not at.
        unmarked = MARK.sub(lambda mark: "endif" if mark[0].startswith("end") else "if true", self.file)
        # As jinja does at the end of a template, one line end is dropped.
        whole = f"{{% set conversation %}}\n{unmarked.removesuffix(chr(10))}{{% endset %}}\n"
        return whole + "{{- conversation if add_generation_prompt else conversation.rstrip() -}}\n"

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        ask: bool = False,
    ) -> Rendered:
        """
        Args:
            ask: end with what makes an assistant answer.

        Raises:
            BadRecord: the template does not take such a conversation.
            TemplateSyntaxError: it takes none.
        """
        try:
            rendered: Any = render_jinja_template(
                [[dict(message) for message in messages]],
                [dict(tool) for tool in tools] if tools else None,
                chat_template=self.source,
                return_assistant_tokens_mask=self.marks_answers,
                add_generation_prompt=ask,
                **self.tokens,  # pyright: ignore[reportArgumentType]
            )
        except TemplateSyntaxError:
            raise
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise BadRecord(f"the chat template {self.name} does not take it: {error}") from None
        (text,), spans = rendered
        return Rendered(text, spans[0] if spans else [])


def chat_options(config: Config) -> tuple[SftSection, str]:
    """How the task of a run reads conversations, and the section of its config that says so."""
    if config.task in ("reward", "dpo"):
        return SftSection(chat_template=config.preferences.chat_template), "preferences"
    if config.task == "rlhf":
        return SftSection(chat_template=config.rlhf.chat_template), "rlhf"
    return config.sft, "sft"


def template_of(config: Config, tokenizer: Path) -> ChatTemplate:
    """The template that a run reads conversations by; of a task that reads none the tokenizer's own.

    Raises:
        InputError: as `chat_template`.
    """
    options, section = chat_options(config)
    return chat_template(tokenizer, options.chat_template, f"{section}.chat_template")


def chat_template(tokenizer: Path, wanted: str | None, key: str = "sft.chat_template") -> ChatTemplate:
    """The template `wanted` (a name of ours or a file) for the tokenizer in a folder; without a wish its own.

    Args:
        key: of the config, that said so.

    Raises:
        InputError: there is no such template, or it is none.
    """
    tokens = special_tokens(tokenizer)
    own = _own_template(tokenizer) if wanted is None else None
    if own is not None:
        return _checked("tokenizer.path", ChatTemplate("of the tokenizer", own, tokens))
    wanted = wanted or "plain"
    if wanted in OURS:
        source = (TEMPLATES / f"{wanted}.jinja").read_text()
        # Like any text of this tokenizer, it begins with BOS if the tokenizer says so.
        return ChatTemplate(wanted, source, tokens if adds_bos(tokenizer) else {**tokens, "bos_token": ""})
    try:
        source = Path(wanted).read_text()
    except (OSError, UnicodeDecodeError) as error:
        message = f"is none of {', '.join(OURS)}, and no file that can be read: {error}"
        raise InputError([Problem(key, wanted, message)]) from None
    return _checked(key, ChatTemplate(wanted, source, tokens))


def _checked(key: str, template: ChatTemplate) -> ChatTemplate:
    """
    Raises:
        InputError: it has errors that show before any conversation.
    """
    try:
        with contextlib.suppress(BadRecord):
            template.render([])
    except TemplateSyntaxError as error:
        message = f"is no template: line {error.lineno}: {error.message}"
        raise InputError([Problem(key, template.name, message)]) from None
    return template


def _own_template(tokenizer: Path) -> str | None:
    """`chat_template.jinja`, or what tokenizer_config.json has."""
    file = tokenizer / "chat_template.jinja"
    if file.is_file():
        return file.read_text()
    config = tokenizer / "tokenizer_config.json"
    found = json.loads(config.read_bytes()).get("chat_template") if config.is_file() else None
    if isinstance(found, list):  # several, by name
        by_name = {one.get("name"): one.get("template") for one in found}
        found = by_name.get("default")
    return found if isinstance(found, str) else None
