"""Sections of an OpenAI-compatible endpoint: who is asked, how fast and how patiently. Without torch."""

import os
from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import urlsplit

from llmscale.config.problems import Problem
from llmscale.config.section import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section


class LimitsSection(Section):
    """How fast an endpoint is asked, how patiently, and how much of it is paid for."""

    concurrency: PositiveInt = 8
    """Requests under way at a time."""
    requests_per_minute: PositiveFloat | None = None
    tokens_per_minute: PositiveFloat | None = None
    """Of prompts and answers together."""
    timeout_seconds: PositiveFloat = 120.0
    """For one whole answer."""
    retries: NonNegativeInt = 6
    """Tries after the first, each after twice the wait; then nothing more is asked."""
    longest_wait_seconds: PositiveFloat = 60.0
    """Between two tries. An endpoint that asks for more (Retry-After) is asked nothing more."""
    requests: PositiveInt | None = None
    """Budget: answers that may be paid for in all, those of earlier runs with the same output included."""
    tokens: PositiveInt | None = None
    """Budget: tokens of prompts and answers in all, those of earlier runs included."""


class EndpointSection(Section):
    """Who answers."""

    endpoint: str | None = None
    """Address up to `/v1`, without `/chat/completions`."""
    name: str | None = None
    """What the endpoint calls the model."""
    key_variable: str | None = None
    """Environment variable that holds the endpoint's key. Left out: none is sent."""
    extra: dict[str, Any] = {}
    """Fields of the request beside ours, such as `{seed: 1}`."""
    length_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls `max_tokens`."""
    temperature: NonNegativeFloat = 0.0
    max_tokens: PositiveInt = 16
    """Longest answer."""
    limits: LimitsSection = LimitsSection()


def key_of(section: EndpointSection) -> str | None:
    """The endpoint's key, from the environment only."""
    return os.environ.get(section.key_variable) if section.key_variable else None


def endpoint_problems(name: str, section: EndpointSection) -> Iterator[Problem]:
    """What is wrong with the address, the name or the key of the section at the dotted key `name`."""
    address = urlsplit(section.endpoint or "")
    if address.scheme not in ("http", "https") or not address.netloc:
        message = "must be an address such as https://host/v1"
        yield Problem(f"{name}.endpoint", section.endpoint, message)
    if address.username or address.password:
        yield Problem(f"{name}.endpoint", "…", "has a key in it; name an environment variable: key_variable")
    if section.name is None:
        yield Problem(f"{name}.name", None, "is needed: what the endpoint calls the model")
    if section.key_variable and not key_of(section):
        message = "is not set in the environment; export it, or leave key_variable out"
        yield Problem(f"{name}.key_variable", section.key_variable, message)
