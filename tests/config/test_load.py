"""Overrides, presets, shorthands, and the resolved config that a run folder keeps."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from llmscale.config.load import load_config, read_resolved, write_resolved
from llmscale.config.presets import configs_folder, load_preset
from llmscale.config.problems import InputError
from llmscale.config.schema import Config
from llmscale.config.yaml_text import parse_yaml

TEXT = """
model: tiny
data: {train: [corpus/a, {path: corpus/b, weight: 2}]}
tokenizer: tokenizer
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "first-try.yaml"
    path.write_text(TEXT)
    return path


def test_overrides_win_over_the_file_and_the_last_one_wins(path: Path) -> None:
    config = load_config(path, ["train.steps=5", "optimizer.lr=3e-4", "train.steps=7", "run.name=x"])
    assert (config.train.steps, config.optimizer.lr, config.run.name) == (7, 3e-4, "x")


@pytest.mark.parametrize(
    ("text", "steps"),
    [("10:13", (10, 13)), ("'10:13'", (10, 13)), ("7:7", (7, 7)), ("100", (100, 100)), ("null", None)],
)
def test_steps_to_profile(path: Path, tmp_path: Path, text: str, steps: tuple[int, int] | None) -> None:
    """YAML's base 60, in which 10:13 is 613, is not asked, neither here nor for the resolved config."""
    config = load_config(path, [f"train.profile={text}"])
    assert config.train.profiled_steps == steps
    write_resolved(config, tmp_path / "resolved.yaml")
    assert read_resolved(tmp_path / "resolved.yaml").train.profiled_steps == steps


def test_under_epochs_the_data_tells_the_steps(path: Path) -> None:
    beyond = ("task=sft", "train.epochs=2", "train.profile=200")
    assert load_config(path, beyond).train.profiled_steps == (200, 200)


def test_run_is_named_after_the_file(path: Path) -> None:
    config = load_config(path)
    assert config.run.name == "first-try"
    assert config.run_folder == Path("runs/first-try")


def test_shorthands_in_file_and_override(path: Path) -> None:
    config = load_config(path, ["cluster=slurm", "cluster.nodes=2", "zero=3", "optimizer=adamw"])
    assert (config.cluster.kind, config.cluster.nodes) == ("slurm", 2)
    assert (config.zero.stage, config.optimizer.name) == (3, "adamw")
    assert [(str(entry.path), entry.weight) for entry in config.data.train] == [
        ("corpus/a", 1),
        ("corpus/b", 2),
    ]
    assert config.tokenizer.path == Path("tokenizer")


def test_preset_fields_stand_where_nothing_else_is_said(path: Path) -> None:
    config = load_config(path, ["model=llama3_8b", "model.layers=2"])
    preset = load_preset("llama3_8b")
    assert config.model.layers == 2
    assert config.model.model_copy(update={"layers": preset.layers}) == preset


@pytest.mark.parametrize("name", sorted(file.stem for file in (configs_folder() / "model").glob("*.yaml")))
def test_every_preset_passes_every_check(path: Path, name: str) -> None:
    assert load_config(path, [f"model={name}"]).model.preset == name


def test_unknown_preset_has_a_nearest() -> None:
    with pytest.raises(InputError, match="did you mean qwen3_8b?"):
        load_preset("qwen_8b")


SHIPPED = [
    file
    for task in get_args(Config.model_fields["task"].annotation)
    for file in sorted((configs_folder() / task).glob("*.yaml"))
]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_shipped_configs_load(file: Path) -> None:
    assert load_config(file).task == file.parent.name


def test_shipped_configs_are_runs_of_their_own() -> None:
    names = {load_config(file).run.name for file in SHIPPED}
    assert len(names) == len(SHIPPED)
    assert names >= {
        "tiny",
        "tiny-sft",
        "tiny-lora",
        "tiny-classify",
        "tiny-reward",
        "tiny-dpo",
        "tiny-dpo-lora",
        "tiny-grpo",
        "tiny-ppo",
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [("3e-4", 3e-4), ("1e5", 1e5), ("3", 3), ("3.5", 3.5), ("true", True), ("null", None), ("hello", "hello"),
     ("llama3_1e", "llama3_1e"), ("[1, a]", [1, "a"]), ("{a: 1}", {"a": 1}), ("'3'", "3"), ("", None)],
)  # fmt: skip
def test_scalars(text: str, value: object) -> None:
    assert parse_yaml(text) == value


def test_resolved_config_is_the_same_config(path: Path, tmp_path: Path) -> None:
    config = load_config(path, ["model=llama3_1b", "train.batch_warmup={start: 2, increment: 2, samples: 9}"])
    written = tmp_path / "config.yaml"
    write_resolved(config, written)
    assert read_resolved(written) == config
    assert yaml.safe_load(written.read_text())["model"]["hidden_size"] == 2048
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.yaml", "first-try.yaml"]


def test_no_torch_for_loading_and_planning(path: Path) -> None:
    """Both run on login nodes and before any rank: what they import is what the user waits for."""
    modules = "llmscale.config.load, llmscale.commands.plan"
    program = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
