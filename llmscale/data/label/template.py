"""The judge's question: a jinja template, such as of two answers, a prompt and a constitution."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

NEEDED = ("prompt", "first", "second")
KNOWN = (*NEEDED, "constitution", "words")

_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


class BadTemplate(ValueError):
    """It does not take what it is given; the message says why."""


def template_faults(
    source: str, needed: Sequence[str] = NEEDED, known: Sequence[str] = KNOWN
) -> Iterator[str]:
    """Everything that is wrong with a template whatever it is given.

    Args:
        needed: names that it must use.
        known: names that there are.
    """
    try:
        used = meta.find_undeclared_variables(_ENVIRONMENT.parse(source))
    except TemplateSyntaxError as error:
        yield f"is no template: line {error.lineno}: {error.message}"
        return
    for name in needed:
        if name not in used:
            yield f"does not use {{{{ {name} }}}}, without which the judge cannot judge"
    for name in sorted(used - set(known)):
        yield f"uses {{{{ {name} }}}}; there are only {', '.join(known)}"


class QuestionTemplate:
    """
    Args:
        source: the template, without faults.
    """

    def __init__(self, source: str) -> None:
        self._template = _ENVIRONMENT.from_string(source)

    def render(self, **values: Any) -> str:
        """
        Raises:
            BadTemplate: the template fails on these.
        """
        try:
            return self._template.render(values)
        except (TemplateError, TypeError, ValueError) as error:
            raise BadTemplate(f"the judge's template does not take it: {error}") from None


class JudgeTemplate:
    """Renders pairs.

    Args:
        source: the template, without faults.
        words: `first`, `second` and `tie`, as the judge is to say them.
    """

    def __init__(self, source: str, words: Mapping[str, Any]) -> None:
        self._template = QuestionTemplate(source)
        self._words = words

    def render(self, prompt: str, first: str, second: str, constitution: Sequence[str]) -> str:
        """
        Raises:
            BadTemplate: the template fails on these.
        """
        return self._template.render(
            prompt=prompt, first=first, second=second, constitution=[*constitution], words=self._words
        )
