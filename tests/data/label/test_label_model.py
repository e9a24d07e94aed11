"""`llmscale data label` with a model here, which samples answers and judges them, against transformers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from llmscale.commands.data import app
from llmscale.config.tuning import SftSection
from llmscale.data.chat.encode import ChatEncoder
from llmscale.data.tokenizer import open_encoder, special_token_ids, vocabulary_size

POSITIONS = 256
TEMPLATE = "{{ prompt }}\nA: {{ first }}\nB: {{ second }}\nSay Verdict: A or Verdict: B."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bpe_folder: Path) -> Path:
    """A Hugging Face folder of a model whose weights are large enough to have opinions."""
    folder = tmp_path_factory.mktemp("model") / "judge"
    shutil.copytree(bpe_folder, folder)
    torch.manual_seed(1)
    ids: dict[str, Any] = {**special_token_ids(bpe_folder)}
    config = LlamaConfig(
        vocab_size=vocabulary_size(bpe_folder), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=POSITIONS,
        initializer_range=0.2, tie_word_embeddings=False, dtype="float32", **ids,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """The folder of a config and its output, with no human's judgement."""
    made = tmp_path_factory.mktemp("labelled")
    prompts = [{"prompt": f"def f{number}(x):"} for number in range(3)]
    (made / "records.jsonl").write_text("".join(json.dumps(one) + "\n" for one in prompts))
    judge = {"model": str(folder), "template": TEMPLATE, "max_tokens": 6, "batch": 4}
    tree = {
        "records": str(made / "records.jsonl"),
        "output": str(made / "out"),
        "reconcile": "mean",
        "tie_below": 0.0,
        "judge": judge | {"words": {"first": "A", "second": "B", "tie": None, "marker": "Verdict:"}},
        "candidates": {"model": str(folder), "count": 2, "max_tokens": 8},
    }
    (made / "label.yaml").write_text(json.dumps(tree))
    command = [sys.executable, "-m", "llmscale", "data", "label", str(made / "label.yaml")]
    environment = {**os.environ, "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return made


def answers(labelled: Path, purpose: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (labelled / "out" / "answers.jsonl").read_text().splitlines())
    return [line["answer"] for line in lines if line["of"] == purpose]


def test_each_prompt_gets_a_preference(labelled: Path) -> None:
    preferences = [
        json.loads(line) for line in (labelled / "out" / "preferences.jsonl").read_text().splitlines()
    ]
    assert [line["record"] for line in preferences] == [1, 2, 3]
    said = {answer["text"] for answer in answers(labelled, "candidates")}
    assert {line[side] for line in preferences for side in ("chosen", "rejected")} == said
    assert len(said) == 6 and all(0.5 < line["probability"] <= 1 for line in preferences)
    card = json.loads((labelled / "out" / "card.json").read_bytes())
    assert card["graded"] == 1 and card["agreement"] is None


def test_probabilities_are_those_of_transformers(labelled: Path, folder: Path) -> None:
    model, encoder = LlamaForCausalLM.from_pretrained(folder), open_encoder(folder)
    chat = ChatEncoder(folder, SftSection(), POSITIONS)
    candidates = [answer["text"] for answer in answers(labelled, "candidates")]
    expected = {}
    for number in range(3):
        for first, second in (0, 1), (1, 0):
            texts = candidates[2 * number + first], candidates[2 * number + second]
            asked = f"def f{number}(x):\nA: {texts[0]}\nB: {texts[1]}\nSay Verdict: A or Verdict: B."
            expected[tuple(chat.prompt([{"role": "user", "content": asked}]))] = None
    judged = answers(labelled, "judge")
    assert len(judged) == len(expected) == 6
    compared = 0
    for answer in judged:
        thought, _, word = answer["text"].rpartition(" ")
        assert thought.endswith("Verdict:") and word in ("A", "B")
        said = encoder.encode(thought, add_special_tokens=False).ids
        tokens = [list(prompt) for prompt in expected if len(prompt) == answer["prompt_tokens"]]
        rows = [model(torch.tensor([prompt + said])).logits[0, -1].double() for prompt in tokens]
        wanted = {text: encoder.encode(text, add_special_tokens=False).ids for text in ("A", " A", "B", " B")}
        single = sorted({ids[0] for ids in wanted.values() if len(ids) == 1})
        found = sorted(answer["alternatives"].values())
        theirs = [sorted(row.log_softmax(-1)[single].tolist()) for row in rows]
        assert any(found == pytest.approx(one, abs=1e-4) for one in theirs)
        compared += len(found)
    assert compared >= 12


def test_what_was_answered_is_not_asked_again(labelled: Path) -> None:
    before = (labelled / "out" / "answers.jsonl").read_bytes(), (labelled / "out" / "card.json").read_bytes()
    result = CliRunner().invoke(app, ["label", str(labelled / "label.yaml")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    after = (labelled / "out" / "answers.jsonl").read_bytes(), (labelled / "out" / "card.json").read_bytes()
    assert after == before
