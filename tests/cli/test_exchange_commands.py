"""`llmscale checkpoint import` and `export`, `generate` and `train.init_from` on folders, from outside."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from llmscale.config.load import write_resolved
from llmscale.config.problems import InputError
from llmscale.data.tokenizer import open_encoder
from llmscale.data.train_tokenizer import train_tokenizer
from llmscale.run.export import plan_export
from llmscale.run.import_folder import plan_import
from llmscale.run.target import find_target
from tests.checkpoint.exchanged_models import random_peer
from tests.engine.saved_states import save_rank, state_config, whole
from tests.ranks import run_ranks

TEXTS = ["the cat sat on a mat, and saw 12 birds über den Bäumen", "def f(x):\n\treturn x  # 🌳 </s> ▁\n"]


def llmscale(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_COLOR": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "llmscale", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder whose tokenizer is one of ours."""
    place = tmp_path_factory.mktemp("exchange")
    train_tokenizer([f"{text} {number}" for number in range(40) for text in TEXTS], place / "model", 400)
    random_peer("llama, tied").save_pretrained(place / "model")
    return place / "model"


def test_there_and_back(folder: Path, tmp_path: Path) -> None:
    done = llmscale("checkpoint", "import", folder, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    done = llmscale("checkpoint", "export", tmp_path / "run", tmp_path / "out", "--max-shard-size", "100KB")
    assert done.returncode == 0, done.stderr
    assert llmscale("checkpoint", "verify", tmp_path / "run").returncode == 0
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    before = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert found.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in found.items())
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = open_encoder(folder)
    for text in TEXTS:
        tokens = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert tokens == ours.encode(text, add_special_tokens=False).ids
    configs = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    for found_in in (configs, generation):
        assert (found_in.bos_token_id, found_in.eos_token_id, found_in.pad_token_id) == (1, 2, 3)


def test_bad_input_ends_with_2(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    for arguments, words in (
        (["import", tmp_path, tmp_path / "out"], "pickles"),
        (["export", folder, tmp_path / "out"], "name a run or a checkpoint"),
        (["export", folder, tmp_path / "out", "--max-shard-size", "5"], "--max-shard-size"),
    ):
        done = llmscale("checkpoint", *arguments)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
    assert not (tmp_path / "out").exists()


def test_folder_as_target(folder: Path) -> None:
    target = find_target(str(folder), folder.parent)
    assert (target.tokenizer, target.vocabulary_size, target.positions) == (folder, 501, 40)
    with pytest.raises(InputError, match="does not divide model.kv_heads"):
        find_target(str(folder), folder.parent, tensor=4)


def test_tokens_beyond_the_rows_make_new_rows(folder: Path, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<new-{number}>" for number in range(110)])
    tokenizer.save_pretrained(tmp_path / "longer")
    plan = plan_import(folder, tmp_path / "run", tmp_path / "longer")
    assert plan.gained_tokens == 400 + 110 - 501
    plan.write(lambda _: None)
    plan_export(str(tmp_path / "run"), tmp_path, None, "fp32").write(tmp_path / "out", 10**9, lambda _: None)
    before = transformers.AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
    after = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").get_input_embeddings().weight
    assert torch.equal(after[:501], before)
    torch.testing.assert_close(after[501:], before.mean(0).expand(9, -1))


@pytest.mark.parametrize("layout", ["tensor 2", "pipeline 2"])
@pytest.mark.parametrize("model", ["gpt2, tied", "qwen3"])
def test_trained_checkpoints_are_exported(tmp_path: Path, layout: str, model: str) -> None:
    """Whatever layout has written them; optimizer state stays behind."""
    config = state_config(layout, model)
    states = run_ranks(config.world_size, save_rank, config, tmp_path / "run" / "checkpoints")
    write_resolved(config, tmp_path / "run" / "config.yaml")
    plan_export(str(tmp_path / "run"), tmp_path, None, "fp32").write(tmp_path / "out", 10**5, lambda _: None)
    built, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values()), report
    found = built.state_dict()
    for name, tensor in whole(state.pieces for state in states).items():
        assert name.startswith("optimizer.") or torch.equal(found[name], tensor), name
