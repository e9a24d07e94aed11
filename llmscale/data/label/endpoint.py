"""Answers from an OpenAI-compatible endpoint: `POST …/chat/completions`, again where that may help.

By the standard library: one request needs no more of HTTP than it has. The key goes into the request's header
and nowhere else, and is cut out of what an endpoint says about it.
"""

import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from llmscale.config.endpoint import EndpointSection, key_of
from llmscale.data.label.answers import Answer, Question
from llmscale.data.label.options import WordsSection
from llmscale.data.label.pace import Pace, retry_after
from llmscale.data.label.respondent import Refused, RespondentFailed
from llmscale.data.label.verdict import spoken_at

REFUSALS = (400, 413, 422)
"""What is wrong with one question: too long, or against the endpoint's rules."""
PASSING = (408, 409, 425, 429)
"""What may go better in a while, as may every 5xx."""
TOP_LOG_PROBABILITIES = 10
CHARACTERS_A_TOKEN = 3
"""Of text in most languages, on the safe side; before the endpoint counts."""


@dataclass(frozen=True)
class _Failure:
    """A try that may go better in a while."""

    message: str
    wait_seconds: float | None = None
    """That the endpoint asks for."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key is for one host; where another is named, the config must name it."""

    def redirect_request(self, *_args: Any, **_more: Any) -> None:
        return None


class Endpoint:
    """
    Args:
        words: of a judge whose log-probabilities are asked for.
        stop: ends every wait.
    """

    def __init__(self, section: EndpointSection, words: WordsSection | None, stop: threading.Event) -> None:
        assert section.endpoint is not None
        self._section = section
        self._words = words
        self._url = section.endpoint.rstrip("/") + "/chat/completions"
        self._pace = Pace(section.limits, stop)
        self._opener = urllib.request.build_opener(_NoRedirects)
        self.identity: JsonValue = {
            "endpoint": section.endpoint.rstrip("/"),
            "name": section.name,
            "temperature": section.temperature,
            "max_tokens": section.max_tokens,
            "extra": section.extra,
            "words": words.model_dump() if words else None,
        }
        self.at_a_time = section.limits.concurrency
        self.batch = 1

    @contextmanager
    def opened(self) -> Iterator[None]:
        yield

    def answer(self, questions: Sequence[Question]) -> list[Answer | Refused]:
        return [self._answer(one) for one in questions]

    def _answer(self, question: Question) -> Answer | Refused:
        """
        Raises:
            RespondentFailed: the endpoint wants no more, or has failed at every try. Stopped
        """
        limits = self._section.limits
        for tries in range(limits.retries + 1):
            self._pace.wait_for_turn(self._expected_tokens(question))
            found = self._try(question)
            if not isinstance(found, _Failure):
                return found
            asked = found.wait_seconds
            if asked is not None and asked > limits.longest_wait_seconds:
                message = f"{found.message}; it asks for {asked:,.0f} seconds, longer than limits allow"
                raise RespondentFailed(f"{self._url}: {message}")
            if asked is not None:
                self._pace.pause(asked)
            if tries < limits.retries:
                self._pace.sleep(max(asked or 0.0, self._pace.backoff(tries)))
        message = f"{limits.retries + 1} tries failed, the last so: {found.message}"
        raise RespondentFailed(f"{self._url}: {message}")

    def _try(self, question: Question) -> Answer | Refused | _Failure:
        try:
            return self._read(question, self._post(question))
        except urllib.error.HTTPError as error:
            return self._refused(error)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            return _Failure(f"no whole answer: {reason!r}")

    def _refused(self, error: urllib.error.HTTPError) -> Refused | _Failure:
        """
        Raises:
            RespondentFailed: trying again cannot help.
        """
        message = f"HTTP {error.code}: {self._words_of(error)}"
        if error.code in REFUSALS:
            return Refused(message)
        if error.code in PASSING or error.code >= 500:
            return _Failure(message, retry_after(error.headers.get("Retry-After")))
        raise RespondentFailed(f"{self._url}: {message}")

    def _words_of(self, error: urllib.error.HTTPError) -> str:
        try:
            text = error.read(2000).decode(errors="replace")
        except (OSError, http.client.HTTPException):
            text = ""
        key = key_of(self._section)
        return " ".join((text.replace(key, "…") if key else text).split())[:300] or str(error.reason)

    def _post(self, question: Question) -> bytes:
        """
        Raises:
            OSError, http.client.HTTPException: no answer, an error, or one that takes too long.
        """
        key = key_of(self._section)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        body = json.dumps(self._body(question)).encode()
        request = urllib.request.Request(self._url, body, headers)
        seconds = self._section.limits.timeout_seconds
        until = time.monotonic() + seconds
        with self._opener.open(request, timeout=seconds) as response:
            # Piece by piece, because the timeout is that of each.
            pieces: list[bytes] = []
            while piece := response.read1(65536):
                pieces.append(piece)
                if time.monotonic() > until:
                    raise TimeoutError(f"not whole after {seconds:g} seconds")
        return b"".join(pieces)

    def _body(self, question: Question) -> dict[str, Any]:
        section = self._section
        body: dict[str, Any] = {
            "model": section.name,
            "messages": [dict(message) for message in question.messages],
            "temperature": section.temperature,
            section.length_field: section.max_tokens,
        }
        if self._words is not None:
            body |= {"logprobs": True, "top_logprobs": TOP_LOG_PROBABILITIES}
        return body | section.extra

    def _read(self, question: Question, content: bytes) -> Answer | _Failure:
        try:
            tree = json.loads(content)
            choice = tree["choices"][0]
            text = str(choice["message"]["content"] or "")
            usage = tree.get("usage") or {}
            # Some do not count; a budget of tokens must hold all the same.
            prompt_tokens = usage.get("prompt_tokens") or expected_tokens(question, 0)
            answer_tokens = usage.get("completion_tokens") or len(text) // CHARACTERS_A_TOKEN
            return Answer(
                text,
                str(choice.get("finish_reason") or "stop"),
                int(prompt_tokens),
                int(answer_tokens),
                self._alternatives(text, choice.get("logprobs")),
            )
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            return _Failure(f"an answer that is none: {error!r}")

    def _alternatives(self, text: str, found: Mapping[str, Any] | None) -> Mapping[str, float] | None:
        """Of the token that the verdict begins with."""
        tokens = (found or {}).get("content") or []
        said = spoken_at(text, self._words) if self._words is not None else None
        if said is None or "".join(token["token"] for token in tokens) != text:
            return None
        end = 0
        for token in tokens:
            end += len(token["token"])
            if end > said[1]:
                others = {one["token"]: float(one["logprob"]) for one in token.get("top_logprobs") or []}
                return {token["token"]: float(token["logprob"]), **others}
        return None

    def _expected_tokens(self, question: Question) -> int:
        return expected_tokens(question, self._section.max_tokens)


def expected_tokens(question: Question, max_tokens: int) -> int:
    """What a question will cost at most, more or less."""
    characters = sum(len(message["content"]) for message in question.messages)
    return characters // CHARACTERS_A_TOKEN + max_tokens
