"""Conversations as tokens: which are learned, against a reference written by hand; BOS, EOS, truncation."""

import json
import re
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from transformers import AutoTokenizer

from llmscale.config.problems import InputError
from llmscale.config.tuning import SftSection
from llmscale.data.chat.encode import ACROSS, TRUNCATED, UNANSWERED, ChatEncoder
from llmscale.data.chat.template import GENERATION, OURS, TEMPLATES, ChatTemplate, chat_template
from llmscale.data.encoding import Encoded, LeftOut
from llmscale.data.tokenizer import open_encoder
from tests.data.conversations import BOS, EOS, conversations, pieces, reference

LONG = 100_000
many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@lru_cache
def encoder_of(folder: Path, longest: int = LONG, **options: Any) -> ChatEncoder:
    return ChatEncoder(folder, SftSection(**options), longest)


def encode(encoder: ChatEncoder, record: dict[str, Any]) -> Encoded:
    [found] = encoder.encode([record], {})
    assert isinstance(found, Encoded), found
    return found


def left_out(encoder: ChatEncoder, record: dict[str, Any]) -> LeftOut:
    [found] = encoder.encode([record], {})
    assert isinstance(found, LeftOut), found
    return found


def lists(found: Encoded) -> tuple[list[int], list[bool]]:
    return found.example.tokens.tolist(), found.example.learned.tolist()


def written(encoder: ChatEncoder, folder: Path, record: dict[str, Any]) -> list[tuple[str, bool]]:
    """Neighbouring tokens that are learned, or are not, as text."""
    tokens, learned = lists(encode(encoder, record))
    tokenizer, spans = open_encoder(folder), []
    for token, counts in zip(tokens, learned):
        if not spans or spans[-1][1] != counts:
            spans.append(([], counts))
        spans[-1][0].append(token)
    return [(tokenizer.decode(ids, skip_special_tokens=False), counts) for ids, counts in spans]


def chat(*turns: str, **first: Any) -> dict[str, Any]:
    """`chat("q", "a", "q", …)`"""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)], **first}


def template_encoder(folder: Path):
    tokenizer = open_encoder(folder)
    tokenizer.encode_special_tokens = False
    return tokenizer


@pytest.fixture(scope="session")
def unmarked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our templates without their marks."""
    folder = tmp_path_factory.mktemp("unmarked")
    for name in OURS:
        source = (TEMPLATES / f"{name}.jinja").read_text()
        bare = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", source)
        assert bare != source and not GENERATION.search(bare)
        (folder / f"{name}.jinja").write_text(bare)
    return folder


# Where what ends a turn is no token, the next turn's first letters are the answer's too, unless marks tell.
TOLD = [
    pytest.param(
        name,
        knows,
        marked,
        id=f"{name}-{'known' if knows else 'unknown'}-{'marked' if marked else 'unmarked'}",
    )
    for name in OURS
    for knows in (True, False)
    for marked in (True, False)
    if knows or marked or name not in ("chatml", "llama3")
]


@pytest.mark.parametrize("name, knows, marked", TOLD)
def test_learned_tokens_are_those_of_the_reference(
    name: str, knows: bool, marked: bool, chat_folder: Path, bpe_folder: Path, unmarked: Path
):
    folder = chat_folder if knows else bpe_folder
    encoder = encoder_of(folder, chat_template=name if marked else str(unmarked / f"{name}.jinja"))
    tokenizer = template_encoder(folder)
    stops = {tokenizer.token_to_id(token) for token in (EOS, "<|im_end|>", "<|eot_id|>")} - {None}

    @many
    @given(conversations())
    def check(record: dict[str, Any]) -> None:
        # Our templates have BOS by the tokenizer's rule, a file of somebody has it where it says so.
        begin = [] if marked else [(BOS, False)]
        expected = reference(tokenizer, [*begin, *pieces(name, record)], stops)
        assert lists(encode(encoder, record)) == expected

    check()


@many
@given(record=conversations())
@pytest.mark.parametrize("name", OURS)
def test_tokens_and_marks_are_those_of_transformers(name: str, record: dict[str, Any], chat_folder: Path):
    encoder = encoder_of(chat_folder, chat_template=name)
    theirs = _pretrained(chat_folder).apply_chat_template(
        record["messages"],
        tools=record["tools"] or None,
        chat_template=encoder.template.source.replace('{{- bos_token or "" -}}', ""),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    tokens, learned = lists(encode(encoder, record))
    assert theirs["input_ids"][: len(tokens)] == tokens
    assert [bool(mark) for mark in theirs["assistant_masks"][: len(tokens)]] == learned
    assert not any(theirs["assistant_masks"][len(tokens) :])


@lru_cache
def _pretrained(folder: Path):
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "unmarked"])
def test_only_the_last_answer_or_all(chat_folder: Path, unmarked: Path, marked: bool):
    template = "zephyr" if marked else str(unmarked / "zephyr.jinja")
    record = chat("one", "two", "three", "four")
    last = encoder_of(chat_folder, chat_template=template, learn="last")
    begin = "" if marked else "<s>"
    before = begin + "<|user|>\none</s>\n<|assistant|>\ntwo</s>\n<|user|>\nthree</s>\n<|assistant|>\n"
    assert written(last, chat_folder, record) == [(before, False), ("four</s>", True)]
    everything = encoder_of(chat_folder, chat_template=template, learn="all")
    assert written(everything, chat_folder, record) == [(before + "four</s>\n", True)]


def test_a_template_without_an_end_gets_eos(tmp_path: Path, chat_folder: Path):
    template = tmp_path / "bare.jinja"
    template.write_text(
        "{% for message in messages %}{{ '[' + message.role + '] ' }}"
        "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}"
        "{% else %}{{ message.content }}{% endif %}{{ ' ; ' }}{% endfor %}"
    )
    encoder = encoder_of(chat_folder, chat_template=str(template))
    spans = written(encoder, chat_folder, chat("hi", "yes", "hi", "no"))
    assert spans[-1] == (" no</s>", True) and "".join(text for text, _ in spans).count(EOS) == 1
    # And one that writes EOS, but outside of its marks.
    template.write_text(template.read_text().replace("{{ ' ; ' }}", "{{ eos_token }}"))
    encoder = ChatEncoder(chat_folder, SftSection(chat_template=str(template)), LONG)
    spans = written(encoder, chat_folder, chat("hi", "yes", "hi", "no"))
    assert [text for text, counts in spans if counts] == [" yes</s>", " no</s>"]


@pytest.mark.parametrize("name", OURS)
def test_bos_is_there_once_where_the_tokenizer_adds_it(name: str, bos_folder: Path, chat_folder: Path):
    records = [chat("hi", "yes"), {"prompt": "hi", "completion": " yes"}, {"text": "hi yes"}]
    bos = open_encoder(bos_folder).token_to_id("<s>")
    for record in records:
        tokens, learned = lists(encode(encoder_of(bos_folder, chat_template=name), record))
        assert tokens[0] == bos and tokens.count(bos) == 1 and not learned[0]
        bare, learned_bare = lists(encode(encoder_of(chat_folder, chat_template=name), record))
        assert (bare, learned_bare) == (tokens[1:], learned[1:])


def test_the_tokenizer_may_say_itself_whether_it_adds_bos(tmp_path: Path, bos_folder: Path):
    folder = tmp_path / "quiet"
    shutil.copytree(bos_folder, folder)
    change(folder, add_bos_token=False)
    tokens, _ = lists(encode(ChatEncoder(folder, SftSection(), LONG), {"text": "hi"}))
    assert open_encoder(folder).token_to_id("<s>") not in tokens


def change(folder: Path, **keys: Any) -> None:
    file = folder / "tokenizer_config.json"
    tree = {**json.loads(file.read_text()), **keys}
    file.write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))


def test_prompt_and_completion_and_text(chat_folder: Path):
    encoder = encoder_of(chat_folder)
    record = {"prompt": "2 + 2 =", "completion": " 4"}
    assert written(encoder, chat_folder, record) == [("2 + 2 =", False), (" 4</s>", True)]
    assert written(encoder, chat_folder, {"text": "a b"}) == [("a b</s>", True)]
    # What is written like a token is text where no template is.
    tokens, _ = lists(encode(encoder, {"text": "a</s>b<|im_end|>"}))
    assert tokens.count(encoder.end_of_text) == 1 and tokens[-1] == encoder.end_of_text


def test_prompts_of_messages_and_instructions_are_conversations(chat_folder: Path):
    encoder = encoder_of(chat_folder)
    wanted = lists(encode(encoder, chat("What is it?\n\nA cat", "Yes")))
    instruction = {"instruction": "What is it?", "input": "A cat", "output": "Yes"}
    assert lists(encode(encoder, instruction)) == wanted
    messages = chat("What is it?\n\nA cat", "Yes")["messages"]
    assert lists(encode(encoder, {"prompt": messages[:1], "completion": messages[1:]})) == wanted
    parts = [{"type": "text", "text": "What is it?"}, {"type": "text", "text": "\n\nA cat"}]
    assert lists(encode(encoder, {"messages": [{"role": "user", "content": parts}, messages[1]]})) == wanted
    [renamed] = encoder.encode([{"turns": messages}], {"messages": "turns"})
    assert isinstance(renamed, Encoded) and lists(renamed) == wanted


def test_arguments_of_calls_may_be_json_in_a_text(chat_folder: Path):
    def record(arguments: Any) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "add", "arguments": arguments}, "id": None}
        return {"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]}

    encoder = encoder_of(chat_folder)
    as_text, as_object = (encode(encoder, record(one)) for one in ('{"a": [1, 2]}', {"a": [1, 2]}))
    assert lists(as_text) == lists(as_object)
    assert "not JSON" in left_out(encoder, record("{")).message


def test_pad_may_be_eos(tmp_path: Path, chat_folder: Path):
    folder = tmp_path / "same"
    shutil.copytree(chat_folder, folder)
    change(folder, pad_token=EOS)
    record = chat("hi", "yes", "so", "no")
    encoder = ChatEncoder(folder, SftSection(chat_template="zephyr"), LONG)
    assert lists(encode(encoder, record)) == lists(
        encode(encoder_of(chat_folder, chat_template="zephyr"), record)
    )


def test_whole_turns_are_cut(chat_folder: Path):
    record = chat("one", "two", "three", "four", "five", "six")
    shorter = [chat("one", "two"), chat("one", "two", "three", "four")]
    lengths = [len(encode(encoder_of(chat_folder), one).example.tokens) for one in (*shorter, record)]
    for longest, expected in (
        (lengths[1], shorter[1]),
        (lengths[2] - 1, shorter[1]),
        (lengths[1] - 1, shorter[0]),
    ):
        found = encode(encoder_of(chat_folder, longest), record)
        assert lists(found) == lists(encode(encoder_of(chat_folder), expected))
        assert found.notes == (TRUNCATED,)
    assert left_out(encoder_of(chat_folder, lengths[0] - 1), record).reason == "too_long"
    assert left_out(encoder_of(chat_folder, lengths[2] - 1, too_long="drop"), record).reason == "too_long"
    assert encode(encoder_of(chat_folder, lengths[2]), record).notes == ()


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "unmarked"])
@pytest.mark.parametrize("learn", ["assistant", "last", "all"])
def test_long_conversations_are_cut_quickly(
    chat_folder: Path, unmarked: Path, marked: bool, learn: str, monkeypatch: pytest.MonkeyPatch
):
    """As if turn after turn were taken away, but with few renderings of what is thrown away."""
    template = "zephyr" if marked else str(unmarked / "zephyr.jinja")
    turns = [f"turn {n}" + " more" * (n % 7) for n in range(400)]
    whole = encoder_of(chat_folder, chat_template=template, learn=learn)
    kept = [lists(encode(whole, chat(*turns[:end]))) for end in range(2, 20, 2)]
    rendered, render = [], ChatTemplate.render
    monkeypatch.setattr(
        ChatTemplate, "render", lambda *args, **keys: rendered.append(0) or render(*args, **keys)
    )
    for longest, expected in zip([len(tokens) for tokens, _ in kept[1:]], kept):
        encoder = encoder_of(chat_folder, longest - 1, chat_template=template, learn=learn)
        rendered.clear()
        found = encode(encoder, chat(*turns))
        assert lists(found) == expected and found.notes == (TRUNCATED,)
        assert len(rendered) < 60


def test_text_is_cut_at_its_end_and_a_completion_is_not(chat_folder: Path):
    text = {"text": " word" * 50}
    whole, _ = lists(encode(encoder_of(chat_folder), text))
    found = encode(encoder_of(chat_folder, 20), text)
    assert lists(found) == (whole[:20], [True] * 20) and found.notes == (TRUNCATED,)
    long = left_out(encoder_of(chat_folder, 20), {"prompt": "a", "completion": " 1" * 50})
    assert long.reason == "too_long" and "102 tokens" in long.message


def test_turns_that_nobody_answers_are_left_out_and_told(chat_folder: Path):
    found = encode(encoder_of(chat_folder), chat("one", "two", "three"))
    assert lists(found) == lists(encode(encoder_of(chat_folder), chat("one", "two")))
    assert found.notes == (UNANSWERED,)


@pytest.mark.parametrize(
    "record, reason, message",
    [
        ({"text": ""}, "empty", ""),
        ({"text": " \n"}, "empty", ""),
        ({"prompt": "a", "completion": ""}, "empty", ""),
        (chat("a", ""), "empty", ""),
        (chat("a"), "nothing_learned", "no turn of an assistant"),
        ({}, "bad", "none of messages, prompt and completion"),
        ({"question": "a"}, "bad", r"has the fields question: .*data.train\[\].fields"),
        ({"text": 3}, "bad", "text is no text"),
        ({"messages": "a"}, "bad", "messages is no list of messages"),
        ({"messages": []}, "bad", "no list of messages"),
        ({"messages": [{"role": "poet", "content": "a"}]}, "bad", r"messages\[0\] has no role of"),
        ({"messages": [{"role": "assistant"}]}, "bad", "neither a content nor tool_calls"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "bad", "without the name"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "bad", "that is no text"),
        (chat("a", "b", tools="all"), "bad", "tools is no list of tools"),
    ],
)
def test_records_that_cannot_be_learned(record: dict[str, Any], reason: str, message: str, chat_folder: Path):
    found = left_out(encoder_of(chat_folder), record)
    assert found.reason == reason and re.search(message, found.message), found


def test_good_and_bad_records_keep_their_places(chat_folder: Path):
    records = [{"text": "a"}, {}, chat("q", "a"), {"text": ""}, {"prompt": "a", "completion": " b"}]
    found = encoder_of(chat_folder).encode(records, {})
    assert [isinstance(one, Encoded) for one in found] == [True, False, True, False, True]
    for record, one in zip(records, found):
        if isinstance(one, Encoded):
            assert lists(one) == lists(encode(encoder_of(chat_folder), record))


def test_a_template_that_rewrites_the_past_is_refused(tmp_path: Path, chat_folder: Path):
    template = tmp_path / "forgetful.jinja"
    template.write_text(
        "{% for message in messages %}{{ message.role + ': ' }}"
        "{% if loop.last or message.role == 'user' %}{{ message.content }}{% else %}{{ '…' }}{% endif %}\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    encoder = encoder_of(chat_folder, chat_template=str(template))
    assert "nobody can tell which tokens" in left_out(encoder, chat("a", "b", "c", "d")).message
    last = encoder_of(chat_folder, chat_template=str(template), learn="last")
    assert [text for text, learned in written(last, chat_folder, chat("a", "b", "c", "d")) if learned] == [
        " d</s>"
    ]
    assert written(encoder, chat_folder, chat("a", "b"))[-1][1]


def test_what_a_template_refuses_is_a_bad_record(tmp_path: Path, chat_folder: Path):
    template = tmp_path / "strict.jinja"
    template.write_text("{{ raise_exception('roles must alternate') }}")
    found = left_out(encoder_of(chat_folder, chat_template=str(template)), chat("a", "b"))
    assert found.reason == "bad" and "does not take it: roles must alternate" in found.message


def test_the_tokenizers_own_template_comes_first(tmp_path: Path, chat_folder: Path):
    folder = tmp_path / "own"
    shutil.copytree(chat_folder, folder)
    plain = lists(encode(ChatEncoder(folder, SftSection(), LONG), chat("a", "b")))
    source = (TEMPLATES / "chatml.jinja").read_text()
    expected = lists(encode(encoder_of(chat_folder, chat_template="chatml"), chat("a", "b")))
    assert plain != expected
    for own in (source, [{"name": "rag", "template": "x"}, {"name": "default", "template": source}]):
        change(folder, chat_template=own, bos_token=None)
        assert lists(encode(ChatEncoder(folder, SftSection(), LONG), chat("a", "b"))) == expected
    change(folder, chat_template="{{ broken }}")
    (folder / "chat_template.jinja").write_text(source)
    assert lists(encode(ChatEncoder(folder, SftSection(), LONG), chat("a", "b"))) == expected
    assert (
        lists(encode(ChatEncoder(folder, SftSection(chat_template="plain"), LONG), chat("a", "b"))) == plain
    )


@pytest.mark.parametrize("name", OURS)
def test_beside_an_exported_model_transformers_renders_the_same(
    name: str, tmp_path: Path, bos_folder: Path, chat_folder: Path
):
    messages = chat("hi", "yes", "why?")["messages"]
    for knows, tokenizer in (("bos", bos_folder), ("no bos", chat_folder)):
        template = chat_template(tokenizer, name)
        folder = shutil.copytree(tokenizer, tmp_path / knows)
        (folder / "chat_template.jinja").write_text(template.file)
        rendered = AutoTokenizer.from_pretrained(folder).apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        assert rendered == template.render(messages, ask=True).text
        assert rendered == chat_template(folder, None).render(messages, ask=True).text


def test_templates_and_tokenizers_that_cannot_be_used(tmp_path: Path, chat_folder: Path):
    (tmp_path / "broken.jinja").write_text("a\n{% for %}")
    for wanted, message in (("no", "no file that can be read"), (str(tmp_path / "broken.jinja"), "line 2")):
        with pytest.raises(InputError, match=message):
            ChatEncoder(chat_folder, SftSection(chat_template=wanted), LONG)
    folder = tmp_path / "endless"
    shutil.copytree(chat_folder, folder)
    change(folder, eos_token=None)
    with pytest.raises(InputError, match="names no eos_token"):
        ChatEncoder(folder, SftSection(), LONG)


def test_a_prompt_is_what_stands_before_an_answer(chat_folder: Path):
    for name in OURS:
        encoder = encoder_of(chat_folder, chat_template=name)
        tokens, learned = lists(encode(encoder, chat("What?", "That.", "What?", "This.")))
        prompt = encoder.prompt(chat("What?", "That.", "What?")["messages"])
        asked = len(learned) - learned[::-1].index(False)
        assert tokens[:asked] == prompt
        assert tokens[-1] in encoder.stops


def test_a_token_across_the_beginning_of_an_answer_is_told(bpe_folder: Path):
    tokenizer = open_encoder(bpe_folder)
    pairs = ((a, b) for a in ("de", "re", "im", "se") for b in ("f", "turn", "port", "lf"))
    prompt, completion = next(
        (a, b) for a, b in pairs if len(tokenizer.encode(a + b).ids) < len(tokenizer.encode(a).ids) + 1
    )
    found = encode(encoder_of(bpe_folder), {"prompt": prompt, "completion": completion})
    assert found.notes == (ACROSS,) and found.example.learned.all()
