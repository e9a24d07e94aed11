"""The formula's parameter counts: the model cards', and those of the models that transformers builds."""

import pytest

from llmscale.config.presets import configs_folder, load_preset
from llmscale.config.schema import ModelSection
from llmscale.plan.parameters import (
    layer_parameters,
    model_parameters,
    padded_vocabulary_size,
    stage_parameters,
)
from tests.peers import peer

OFFICIAL = {
    "llama3_1b": 1_235_814_400,
    "llama3_3b": 3_212_749_824,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3_405b": 405_853_388_800,
    "qwen3_0.6b": 596_049_920,
    "qwen3_1.7b": 1_720_574_976,
    "qwen3_8b": 8_190_735_360,
    "qwen3_32b": 32_762_123_264,
    "gpt2_124m": 124_439_808,
    "gpt2_355m": 354_823_168,
    "gpt2_774m": 774_030_080,
    "gpt2_1.5b": 1_557_611_200,
    "mistral_7b": 7_241_732_096,
}
PRESETS = sorted(file.stem for file in (configs_folder() / "model").glob("*.yaml"))
FAMILIES = ["llama", "mistral", "qwen3", "gpt2"]


def transformers_count(model: ModelSection, vocabulary_size: int) -> int:
    """Parameters of the same model as transformers builds it, with no memory behind them."""
    built = peer(model, vocabulary_size, model.max_positions or 1024, "meta")
    return sum(parameter.numel() for parameter in built.parameters())


@pytest.mark.parametrize("name", OFFICIAL)
def test_model_cards(name: str) -> None:
    model = load_preset(name)
    assert model.vocabulary_size is not None
    assert model_parameters(model, model.vocabulary_size, 1024).total == OFFICIAL[name]


@pytest.mark.parametrize("name", PRESETS)
def test_transformers_builds_as_many(name: str) -> None:
    """One and two layers are built, the rest is their difference: 126 layers of meta tensors are slow."""
    model = load_preset(name)
    vocabulary_size = model.vocabulary_size or 8192
    one, two = (
        transformers_count(model.model_copy(update={"layers": layers}), vocabulary_size) for layers in (1, 2)
    )
    assert model_parameters(model, vocabulary_size, 1024).total == one + (model.layers - 1) * (two - one)
    assert layer_parameters(model).total == two - one


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_ranks_hold_the_whole_model(family: str, tied: bool) -> None:
    """Over all tensor ranks and stages: every matrix once, the tied copy once more."""
    tensor, pipeline, vocabulary_size = 2, 4, 1024
    model = ModelSection.model_validate(
        {
            "family": family,
            "layers": 8,
            "max_positions": 64,
            "tie_embeddings": tied,
            "vocabulary_size": vocabulary_size,
        }
    )
    whole = model_parameters(model, vocabulary_size, 64)
    parts = [
        stage_parameters(model, vocabulary_size, 64, tensor, pipeline, stage) for stage in range(pipeline)
    ]
    assert sum(part.embedding for part in parts) * tensor == whole.embedding
    assert sum(part.output for part in parts) * tensor == (whole.output or whole.embedding)
    assert sum(part.norms for part in parts) == whole.norms
    assert sum(part.positions for part in parts) == whole.positions
    row_biases = model.layers * model.hidden_size if family == "gpt2" else 0
    for kind in ("attention", "feed_forward"):
        assert sum(getattr(part, kind) for part in parts) * tensor == getattr(whole, kind) + row_biases


def test_one_rank_holds_the_model_and_the_padding() -> None:
    model = load_preset("gpt2_124m")
    alone = stage_parameters(model, 50257, 1024, tensor=1, pipeline=1, stage=0)
    assert alone.total - model_parameters(model, 50257, 1024).total == (50304 - 50257) * 768


@pytest.mark.parametrize(
    ("size", "tensor", "padded"),
    [(1, 1, 128), (128, 1, 128), (129, 1, 256), (1000, 4, 1024), (50257, 8, 51200)],
)
def test_padded_vocabulary(size: int, tensor: int, padded: int) -> None:
    assert padded_vocabulary_size(size, tensor) == padded
