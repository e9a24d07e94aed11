"""`llmscale data inspect CONFIG`: samples with what is learned, figures, and what is suspicious."""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from llmscale.commands.data import app
from llmscale.config.problems import InputError
from llmscale.data.examples import Example
from llmscale.data.inspect_examples import shown_tokens
from llmscale.data.tokenizer import open_encoder


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["inspect", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def chat(question: str, answer: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, (question, answer))]}


def write_config(folder: Path, tokenizer: Path, records: list[dict[str, Any]], **sections: Any) -> Path:
    file = folder / "records.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    config = {
        "task": "sft",
        "tokenizer": str(tokenizer),
        "data": {"train": [str(file)], "split": [1, 0, 0], **sections.pop("data", {})},
        "train": {"sequence_length": 64},
        **sections,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


def test_samples_on_the_terminal_and_as_a_page(tmp_path: Path, chat_folder: Path):
    records = [chat(f"Is {n} < {n + 1} & true?", f"Yes, {n}.") for n in range(20)]
    config = write_config(tmp_path, chat_folder, records, sft={"chat_template": "chatml"})
    page = tmp_path / "page.html"
    output = run(config, "-n", 2, "--html", page)
    assert "⟦Yes, 0.<|im_end|>⟧" in output and "⟦Yes, 16.<|im_end|>⟧" in output
    assert "20 to train on, 0 to validate on" in " ".join(output.split())
    assert "Suspicious: nothing" in output
    html = page.read_text()
    samples = re.findall(r"<div class=sample>(.*?)</div>", html, re.DOTALL)
    assert len(samples) == 2
    tokens = re.findall(
        r'<span class="?(learned|read)(?: special")? title="(\d+)">(.*?)</span>', samples[0], re.DOTALL
    )
    learned = "".join(unescape(text) for kind, _, text in tokens if kind == "learned")
    read = "".join(unescape(text) for kind, _, text in tokens if kind == "read")
    assert learned == "Yes, 0.<|im_end|>"
    assert read == "<|im_start|>user↵\nIs 0 < 1 & true?<|im_end|>↵\n<|im_start|>assistant↵\n"


def test_characters_of_many_tokens_and_special_tokens(bos_folder: Path):
    tokenizer = open_encoder(bos_folder)
    text = " Zürich 👩\u200d👧!"
    ids = [tokenizer.token_to_id("</s>"), *tokenizer.encode(text, add_special_tokens=False).ids]
    example = Example(np.array(ids, np.int32), np.ones(len(ids), bool))
    shown = shown_tokens(example, tokenizer)
    assert "".join(token.text for token in shown) == f"</s>{text}" and [token.id for token in shown] == ids
    assert any(not token.text for token in shown), "a part of a character shows with its last part"
    assert [token.text for token in shown if token.special] == ["</s>"]
    cut = Example(example.tokens[:-2], example.learned[:-2])
    assert shown_tokens(cut, tokenizer)[-1].text.startswith("<0x"), "nothing is left unsaid"


def test_overrides_change_the_config(tmp_path: Path, chat_folder: Path):
    config = write_config(tmp_path, chat_folder, [chat("a", "b")] * 3)
    assert "⟦ b</s>⟧" in run(config)
    assert "⟦User: a" in run(config, "sft.learn=all")


@pytest.mark.parametrize(
    "records, sections, doubt",
    [
        ([chat("</s> a", "b")], {}, "the special token </s> stands in what is said"),
        (
            [chat("a", "b")],
            {"sft": {"chat_template": "zephyr"}},
            "writes <|assistant|>, which this",
        ),
        ([chat("a", "b")] * 2, {}, "1 training examples are there more than once"),
        ([{"text": " a" * 99}], {}, "does not end with EOS, because it was cut: 1 records, the first in"),
        ([{"messages": [*chat("a", "")["messages"], *chat("b", "c")["messages"]]}], {}, "assistant is empty"),
        ([chat(" b" * 99, "c"), chat("a", "b"), chat("b", "c")], {}, "33% of the records are left out"),
        ([{"prompt": "a", "completion": "b"}], {}, "no white space is between prompt and completion"),
    ],
)
def test_what_is_suspicious_is_said(
    records: list[dict[str, Any]], sections: dict[str, Any], doubt: str, tmp_path: Path, chat_folder: Path
):
    assert doubt in " ".join(run(write_config(tmp_path, chat_folder, records, **sections)).split())


def test_validation_that_is_trained_on_is_suspicious(tmp_path: Path, chat_folder: Path):
    records = [chat(str(n), str(n)) for n in range(4)]
    data = {"validation": [str(tmp_path / "records.jsonl")]}
    output = run(write_config(tmp_path, chat_folder, records, data=data))
    assert "4 of 4 validation examples are training examples too" in output


def test_bos_that_a_template_writes_twice_is_suspicious(tmp_path: Path, bos_folder: Path):
    template = tmp_path / "twice.jinja"
    template.write_text(
        "{{ bos_token ~ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content ~ eos_token }}{% endgeneration %}"
        "{% else %}{{ message.content }}{% endif %}{% endfor %}"
    )
    config = write_config(tmp_path, bos_folder, [chat("a", "b")], sft={"chat_template": str(template)})
    assert "BOS is there twice: 1 records" in run(config)


def test_other_targets(tmp_path: Path, chat_folder: Path):
    config = write_config(tmp_path, chat_folder, [chat("a", "b")], task="pretrain")
    with pytest.raises(InputError, match="trains on corpora"):
        run(config)
    with pytest.raises(InputError, match="--tokenizer"):
        run(tmp_path / "corpus")
