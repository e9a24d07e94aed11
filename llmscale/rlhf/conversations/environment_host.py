"""What runs in the subprocess of environments: keeps one for each conversation, and calls them as told.

Needs the standard library alone. A call that takes too long is ended by a signal, so that it costs its own
conversation only; what does not even take signals is killed by who watches this process.
"""

import importlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import Any

_environments: dict[int, Any] = {}


def host(orders: Sequence[Mapping[str, Any]], environment: str, step_seconds: float) -> list[dict[str, Any]]:
    """What comes of each order: `reset` (with a record) makes an environment by its number, `step` (with a
    completion) asks it, `forget` drops it; `check` tells whether the
    class can be used."""
    return [_outcome(order, environment, step_seconds) for order in orders]


def _outcome(order: Mapping[str, Any], environment: str, seconds: float) -> dict[str, Any]:
    try:
        with _in_time(seconds):
            return _carry_out(order, environment)
    except Exception as error:
        _environments.pop(order["number"], None)
        return {"error": f"{order['do']} raised {type(error).__name__}: {error}"[:500]}


def _carry_out(order: Mapping[str, Any], environment: str) -> dict[str, Any]:
    number = order["number"]
    if order["do"] == "forget":
        _environments.pop(number, None)
        return {}
    if order["do"] == "check":
        made = _class(environment)
        missing = [name for name in ("reset", "step") if not callable(getattr(made, name, None))]
        return {"error": f"it has no {' and no '.join(missing)}"} if missing else {}
    if order["do"] == "reset":
        made = _class(environment)()
        messages = _messages(made.reset(order["record"]), ("system", "user", "assistant", "tool"))
        if not messages or messages[-1]["role"] == "assistant":
            raise ValueError("it returned no message that could be answered")
        _environments[number] = made
        return {"messages": messages}
    found = _environments.get(number)
    if found is None:
        raise LookupError("the environment is gone, because the process that it was in had to be restarted")
    messages, reward, done = found.step(order["completion"])
    if done:
        del _environments[number]
    elif not messages:
        raise ValueError("it is not done, and returned no message that could be answered")
    return {"messages": _messages(messages), "reward": _finite(reward), "done": bool(done)}


def _class(environment: str) -> Any:
    module, _, name = environment.partition(":")
    return getattr(importlib.import_module(module), name)


def _messages(returned: Any, roles: Sequence[str] = ("system", "user", "tool")) -> list[dict[str, Any]]:
    messages = [dict(message) for message in returned]
    for message in messages:
        if message.get("role") not in roles or not isinstance(message.get("content"), str):
            raise ValueError(f"{message!r:.200} is no message of {', '.join(roles)} with a text as content")
    return messages


def _finite(reward: Any) -> float:
    if isinstance(reward, str) or not isfinite(number := float(reward)):
        raise ValueError(f"the reward {reward!r:.80} is no number")
    return number


@contextmanager
def _in_time(seconds: float) -> Iterator[None]:
    """
    Raises:
        TimeoutError: within it, after `seconds`.
    """

    def end(_signal: int, _frame: Any) -> None:
        raise TimeoutError(f"took longer than {seconds:g} seconds")

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
