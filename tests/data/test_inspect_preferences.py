"""`llmscale data inspect CONFIG` of preferences: which answer is which, and what is suspicious."""

import re
from html import unescape
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llmscale.config.load import load_config
from llmscale.data.inspect_examples import inspect_config
from llmscale.data.inspect_terminal import show_inspection
from tests.data.test_inspect import run, write_config

GREEN, RED = "\x1b[30;42m", "\x1b[30;41m"


def pair(n: int, chosen: str = "yes", rejected: str = "no") -> dict[str, Any]:
    return {"instruction": f"Is it {n}?", "chosen": f"{n}, {chosen}", "rejected": f"{n}, {rejected}"}


def config_of(folder: Path, tokenizer: Path, records: list[dict[str, Any]], **sections: Any) -> Path:
    start = {"init_from": "model", "sequence_length": 128}
    template = {"chat_template": "chatml"}
    given = {"task": "dpo", "train": start, "preferences": template, **sections}
    return write_config(folder, tokenizer, records, **given)


@pytest.mark.parametrize("task", ["dpo", "reward"])
def test_answers_stand_one_after_the_other(task: str, tmp_path: Path, chat_folder: Path) -> None:
    """Of a reward, too, whose loss counts the last tokens alone."""
    page = tmp_path / "page.html"
    output = run(
        config_of(tmp_path, chat_folder, [pair(n) for n in range(5)], task=task), "-n", 1, "--html", page
    )
    asked = "<|im_start|>user↵\nIs it 0?<|im_end|>↵\n<|im_start|>assistant↵\n"
    assert f"chosen:\n{asked}⟦0, yes<|im_end|>⟧" in output
    assert f"rejected:\n{asked}⟪0, no<|im_end|>⟫" in output
    html = page.read_text()
    for title, kind, answer in (("chosen", "learned", "0, yes"), ("rejected", "rejected", "0, no")):
        [text] = re.findall(rf"<p>{title}</p><div class=sample>(.*?)</div>", html, re.DOTALL)
        told = re.findall(r'<span class="?(\w+)(?: special")? title="\d+">(.*?)</span>', text, re.DOTALL)
        assert "".join(unescape(said) for one, said in told if one == kind) == f"{answer}<|im_end|>"
        assert "".join(unescape(said) for one, said in told if one == "read") == asked
    assert "better, or right" in html and "worse, or wrong" in html
    facts = " ".join(output.split())
    assert "5 to train on, 0 to validate on" in facts and "comparisons │ 5" in facts


def test_colours_of_a_terminal(tmp_path: Path, chat_folder: Path) -> None:
    """Tokens that follow each other have two shades."""
    config = load_config(config_of(tmp_path, chat_folder, [pair(0)]))
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, color_system="standard", width=200)
    show_inspection(inspect_config(config, 1), console)
    chosen, rejected = screen.getvalue().split("rejected:")
    assert GREEN in chosen and RED not in chosen and RED in rejected and GREEN not in rejected


def test_several_ranked_and_judged_answers(tmp_path: Path, chat_folder: Path) -> None:
    several = {"prompt": "a", "chosen": " b", "rejected": [" c", " d"], "margin": [1, 2.5]}
    output = run(config_of(tmp_path, chat_folder, [several]))
    assert "rejected, 1 worse:" in output and "rejected, 2.5 worse:" in output
    ranked = {"prompt": "a", "responses": [" b", " c", " d"]}
    output = run(config_of(tmp_path, chat_folder, [ranked]))
    assert "rejected (rank 2):" in output and "rejected (rank 3):" in output
    judged = [{"prompt": "a", "completion": f" b{n}", "label": n > 0} for n in range(4)]
    output = run(config_of(tmp_path, chat_folder, judged, dpo={"loss": "kto"}))
    assert "label: false:\na⟪ b0</s>⟫" in output and "label: true:\na⟦ b3</s>⟧" in output
    assert "labels │ 75.0% true" in " ".join(output.split())


@pytest.mark.parametrize(
    ("records", "sections", "doubt"),
    [
        ([pair(n, "indeed it is") for n in range(9)], {}, "the longer one in 100% of the comparisons"),
        ([pair(n, "", "by no means") for n in range(9)], {}, "the shorter one in 100% of the comparisons"),
        ([{"prompt": "a", "chosen": "b", "rejected": " c"}], {}, "no white space is between prompt and"),
        ([pair(0, "</s>")], {}, "the special token </s> stands in what is said"),
        ([pair(0), pair(0)], {}, "1 training examples are there more than once"),
        ([pair(0, "no"), pair(0), pair(1)], {}, "33% of the records are left out"),
        (
            [{"prompt": f"{n}", "completion": " b", "label": True} for n in range(3)],
            {"dpo": {"loss": "kto"}},
            "every label is true",
        ),
    ],
)
def test_what_is_suspicious_is_said(
    records: list[dict[str, Any]], sections: dict[str, Any], doubt: str, tmp_path: Path, chat_folder: Path
) -> None:
    assert doubt in " ".join(run(config_of(tmp_path, chat_folder, records, **sections)).split())


def test_nothing_is_suspicious_of_what_is_in_order(tmp_path: Path, chat_folder: Path) -> None:
    records = [pair(n, *(("yes", "no no")[:: 1 if n % 2 else -1])) for n in range(20)]
    for task in ("dpo", "reward"):
        assert "Suspicious: nothing" in run(config_of(tmp_path, chat_folder, records, task=task))


def test_validation_of_prompts_that_are_trained_on_is_suspicious(tmp_path: Path, chat_folder: Path) -> None:
    file = tmp_path / "held_out.jsonl"
    config = config_of(tmp_path, chat_folder, [pair(n) for n in range(4)], data={"validation": [str(file)]})
    file.write_text((tmp_path / "records.jsonl").read_text().replace("yes", "surely"))
    assert "4 of 4 validation prompts are training prompts too" in " ".join(run(config).split())
