"""Conversations made up by hypothesis, and what our templates make of them, written a second time by hand.

The reference knows nothing of jinja, of offsets or of the code that it judges: a template is a function from
a conversation to pieces of text that are learned or not, and a token holds the bytes that its own name says.
"""

import json
from typing import Any

import numpy as np
from hypothesis import strategies as st
from tokenizers import Tokenizer

Piece = tuple[str, bool]
"""Text, and whether it is learned."""

EOS, BOS = "</s>", "<s>"

words = st.sampled_from(
    ("yes", " no ", "", "\n", "\n\nUser: hello", "naïve café", "😀👩\u200d👩\u200d👧", "数学 3+4=7", "a  b\t")
    + ("Assistant:", "ß" * 5, "'", "<")
)
contents = st.lists(words, max_size=3).map("".join) | st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12
)
calls = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": st.sampled_from(["add", "search"]), "arguments": st.fixed_dictionaries({"q": contents})}
        ),
    }
)
answers = st.fixed_dictionaries({"role": st.just("assistant"), "content": contents}) | st.fixed_dictionaries(
    {
        "role": st.just("assistant"),
        "content": contents,
        "tool_calls": st.lists(calls, min_size=1, max_size=2),
    }
)
questions = st.fixed_dictionaries({"role": st.sampled_from(["user", "tool"]), "content": contents})
system = st.fixed_dictionaries({"role": st.just("system"), "content": contents})
tools = st.none() | st.lists(st.fixed_dictionaries({"name": st.sampled_from(["add", "search"])}), max_size=2)


@st.composite
def conversations(draw: st.DrawFn) -> dict[str, Any]:
    """A record: perhaps a system turn, then questions and answers in any order; the last turn is an answer
    that says something."""
    messages = draw(st.lists(system, max_size=1))
    for turn in draw(st.lists(questions | answers, min_size=0, max_size=5)):
        messages.append(turn)
    messages.append({"role": "assistant", "content": draw(contents) + "."})
    return {"messages": messages, "tools": draw(tools)}


def pieces(template: str, record: dict[str, Any]) -> list[Piece]:
    """What `template` writes, for a tokenizer that adds no BOS."""
    return {"plain": _plain, "chatml": _chatml, "llama3": _llama3, "zephyr": _zephyr}[template](
        record["messages"], record["tools"] or []
    )


def _plain(messages: list[dict[str, Any]], tools: list[Any]) -> list[Piece]:
    turns: list[list[Piece]] = []
    if tools:
        turns.append([("\n".join(["Tools:", *map(_json, tools)]), False)])
    for message in messages:
        said = _said(message, lambda call: f"Call: {_called(call)}")
        if message["role"] == "assistant":
            turns.append([("Assistant:", False), (f" {said}{EOS}", True)])
        else:
            turns.append([(f"{message['role'].capitalize()}: {said}", False)])
    joined = [[("\n\n", False), *turn] for turn in turns]
    return sum(joined, [])[1:]


def _chatml(messages: list[dict[str, Any]], tools: list[Any]) -> list[Piece]:
    found: list[Piece] = []
    if tools:
        found.append(("\n".join(["<|im_start|>system\nTools:", *map(_json, tools)]) + "<|im_end|>\n", False))
    for message in messages:
        said = _said(message, lambda call: f"<tool_call>\n{_called(call)}\n</tool_call>")
        found.append((f"<|im_start|>{message['role']}\n", False))
        found += [(f"{said}<|im_end|>", message["role"] == "assistant"), ("\n", False)]
    return found


def _llama3(messages: list[dict[str, Any]], tools: list[Any]) -> list[Piece]:
    def header(role: str) -> Piece:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n", False

    found: list[Piece] = []
    if tools:
        found += [header("system"), ("\n".join(["Tools:", *map(_json, tools)]) + "<|eot_id|>", False)]
    for message in messages:
        stripped = {**message, "content": message["content"].strip(), "had_content": message["content"]}
        said = _said(stripped, lambda call: _json({"name": call["name"], "parameters": call["arguments"]}))
        found.append(header("ipython" if message["role"] == "tool" else message["role"]))
        found.append((f"{said}<|eot_id|>", message["role"] == "assistant"))
    return found


def _zephyr(messages: list[dict[str, Any]], tools: list[Any]) -> list[Piece]:
    found: list[Piece] = []
    if tools:
        found.append(("\n".join(["<|tools|>", *map(_json, tools)]) + f"{EOS}\n", False))
    for message in messages:
        said = _said(message, lambda call: f"<|call|>{_called(call)}")
        found.append((f"<|{message['role']}|>\n", False))
        found += [(f"{said}{EOS}", message["role"] == "assistant"), ("\n", False)]
    return found


def _said(message: dict[str, Any], write: Any) -> str:
    called = [write(call["function"]) for call in message.get("tool_calls", [])]
    parts = "".join(("\n" if place else "") + call for place, call in enumerate(called))
    gap = "\n" if called and message.get("had_content", message["content"]) else ""
    return message["content"] + gap + parts


def _called(call: dict[str, Any]) -> str:
    return _json({"name": call["name"], "arguments": call["arguments"]})


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def reference(tokenizer: Tokenizer, written: list[Piece], stops: set[int]) -> tuple[list[int], list[bool]]:
    """Tokens of the text until the end of its last learned piece, and which of them hold a learned byte.

    Where that piece does not end with one of `stops`, EOS follows.
    """
    text = "".join(piece for piece, _ in written)
    byte_is_learned = np.concatenate(
        [np.zeros(0, bool), *(np.full(len(piece.encode()), learned) for piece, learned in written)]
    )
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    learned, at = [], 0
    for token in ids:
        length = len(_bytes_of(tokenizer, token))
        learned.append(bool(byte_is_learned[at : at + length].any()))
        at += length
    assert at == len(text.encode()), "the reference has lost bytes"
    while learned and not learned[-1]:
        learned.pop()
    ids = ids[: len(learned)]
    if ids and ids[-1] not in stops:
        ids, learned = [*ids, tokenizer.token_to_id(EOS)], [*learned, True]
    return ids, learned


def _bytes_of(tokenizer: Tokenizer, token: int) -> bytes:
    name = tokenizer.id_to_token(token)
    assert name is not None
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes([int(name[3:5], 16)])
    return name.encode()
