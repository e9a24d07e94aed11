"""To and from Hugging Face folders: transformers and llmscale compute the same logits from them."""

from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from llmscale.checkpoint.store import locate
from llmscale.config.problems import InputError
from llmscale.config.schema import ModelSection
from llmscale.run.export import plan_export
from llmscale.run.import_folder import plan_import
from tests.checkpoint.exchanged_models import (
    CASES,
    LAYOUTS,
    VOCABULARY,
    logits_rank,
    random_peer,
    section,
    tokens_BS,
)
from tests.ranks import run_ranks

WITHIN = 1e-5


def export(run: Path, out: Path, dtype: str = "fp32", most: int = 10**9) -> Path:
    plan_export(str(run), run.parent, None, dtype).write(out, most, lambda _: None)
    return out


def bring_in(folder: Path, out: Path) -> Path:
    plan_import(folder, out, None).write(lambda _: None)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def logits_BSV(folder: Path) -> Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    assert model.dtype == torch.float32
    with torch.no_grad():
        return model(input_ids=tokens_BS()).logits


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each case as transformers saves it, in several files."""
    place = tmp_path_factory.mktemp("models")
    found = {}
    for number, case in enumerate(CASES):
        found[case] = place / f"model-{number}"
        random_peer(case).save_pretrained(found[case], max_shard_size="100KB")
    return found


@pytest.fixture(scope="module")
def imported(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("imported")
    return {case: bring_in(folder, place / folder.name) for case, folder in folders.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_transformers_give_its_logits(
    folders: dict[str, Path], imported: dict[str, Path], layout: str
) -> None:
    """Read from the folder itself, and from what `import` made of it."""
    sources = {place[case]: section(case) for place in (folders, imported) for case in CASES}
    ranks = 1 if layout == "one rank" else 2
    found = {
        path: ours for rank in run_ranks(ranks, logits_rank, sources, layout) for path, ours in rank.items()
    }
    for case, folder in folders.items():
        expected = logits_BSV(folder)
        assert expected.std() > 0.1
        for source in (folder, imported[case]):
            torch.testing.assert_close(found[source], expected, atol=WITHIN, rtol=0)


def test_export_gives_back_what_was_imported(
    folders: dict[str, Path], imported: dict[str, Path], tmp_path: Path
) -> None:
    """The same logits to the bit, and once more through import and export the same bytes."""
    for number, (case, folder) in enumerate(folders.items()):
        first = export(imported[case], tmp_path / f"first-{number}", most=100_000)
        assert (first / "model.safetensors.index.json").exists()
        assert torch.equal(logits_BSV(first), logits_BSV(folder)), case
        again = bring_in(first, tmp_path / f"again-{number}")
        second = export(again, tmp_path / f"second-{number}", most=100_000)
        assert contents(second) == contents(first), case


def test_bf16_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = random_peer("qwen3, tied").to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    model.save_pretrained(tmp_path / "model")
    export(bring_in(tmp_path / "model", tmp_path / "run"), tmp_path / "out", "bf16")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in model.state_dict().items():
        assert back[name].dtype == torch.bfloat16 and torch.equal(back[name], tensor)


@pytest.mark.parametrize("layout", ["one rank", "tensor 2"])
def test_new_tokens_have_the_mean_row(
    folders: dict[str, Path], imported: dict[str, Path], layout: str
) -> None:
    """So their logits are the mean of the others', which stay as they are."""
    gained = 30
    model = section("llama").model_copy(update={"vocabulary_size": VOCABULARY + gained})
    grown = {"model.embed_tokens.weight": 1, "lm_head.weight": 1}
    sources = {folders["llama"]: model, imported["llama"]: model}
    found = run_ranks(1 if layout == "one rank" else 2, logits_rank, sources, layout, grown)[0]
    expected = logits_BSV(folders["llama"])
    for source in sources:
        torch.testing.assert_close(found[source][..., :VOCABULARY], expected, atol=WITHIN, rtol=0)
        mean = expected.mean(-1, keepdim=True).expand(-1, -1, gained)
        torch.testing.assert_close(found[source][..., VOCABULARY:], mean, atol=WITHIN, rtol=0)


def refused(folder: Path, model: ModelSection) -> str:
    with pytest.raises(AssertionError) as caught:
        run_ranks(1, logits_rank, {folder: model}, "one rank")
    return str(caught.value)


def test_another_model_is_refused_by_the_ranks(folders: dict[str, Path], imported: dict[str, Path]) -> None:
    smaller = section("llama").model_copy(update={"vocabulary_size": VOCABULARY - 1})
    for source in (folders["llama"], imported["llama"]):
        message = refused(source, smaller)
        assert "InputError" in message and "model.embed_tokens.weight" in message


def test_damage_is_not_exported(imported: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    bring_in(export(imported["llama"], tmp_path / "first"), run)
    shard = locate(run)[0].path / "shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(Exception, match="not those that were saved"):
        export(run, tmp_path / "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "run"]


def test_values_beyond_the_type_are_refused(tmp_path: Path) -> None:
    model = random_peer("llama")
    with torch.no_grad():
        model.lm_head.weight[3, 5] = 1e6
    model.save_pretrained(tmp_path / "model")
    run = bring_in(tmp_path / "model", tmp_path / "run")
    with pytest.raises(InputError, match="lm_head.weight.*not finite as F16"):
        export(run, tmp_path / "half", "fp16")
    with torch.no_grad():
        model.lm_head.weight[3, 5] = float("nan")
    model.save_pretrained(tmp_path / "spoiled")
    with pytest.raises(InputError, match="lm_head.weight.*not finite"):
        bring_in(tmp_path / "spoiled", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "run", "spoiled"]


def test_nothing_is_overwritten(folders: dict[str, Path], imported: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for work in (lambda: export(imported["gpt2"], tmp_path), lambda: bring_in(folders["gpt2"], tmp_path)):
        with pytest.raises(InputError, match="OUT"):
            work()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
