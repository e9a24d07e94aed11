"""A reward model with its head, wherever it lies: the scores of transformers, under every layout."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from llmscale.config.problems import InputError
from llmscale.data.chat.conversation import Conversation
from llmscale.data.chat.encode import Answered, ChatEncoder, chat_encoder
from llmscale.data.chat.template import OURS
from llmscale.data.tokenizer import open_encoder
from llmscale.data.train_tokenizer import train_tokenizer
from llmscale.parallel.environment import RankEnvironment
from llmscale.run.beginnings import check_init_from
from llmscale.run.export import plan_export
from llmscale.run.import_folder import plan_import
from llmscale.run.reward_model import load_reward_model, open_reward_model
from llmscale.run.target import Target, find_target
from tests.ranks import run_ranks
from tests.run.reward_models import FAMILIES, POSITIONS, peer_scores, random_folder, reward_config, write_run

CHAT = [{"role": "user", "content": "how many rows?"}, {"role": "assistant", "content": "seven, or six"}]
TEXTS = [[5, 17, 40, 2], [9, 3, 77, 12, 250, 31, 8, 2], [300, 2], list(range(20, 61)) + [2]]
"""Each ends with EOS."""
QUICK_FAMILIES, QUICK_TEMPLATES = ("llama", "gpt2"), ("chatml",)
"""What `make test` runs; the rest is `make soak`."""


def some_in_soak(value: str, quick: tuple[str, ...]) -> Any:
    return pytest.param(value, marks=[] if value in quick else pytest.mark.soak)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that knows the tokens of our templates."""
    folder = tmp_path_factory.mktemp("rewards") / "tokenizer"
    train_tokenizer(["how many rows are seven or six of a row"] * 40, folder, 380, "bpe", threads=1)
    names = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    return {name: random_folder(reward_config(root, name, tokenizer), root / name) for name in FAMILIES}


def texts_of(folder: Path) -> list[list[int]]:
    """With the padding of the folder's config in the middle, where it is a token as any other."""
    pad = json.loads((folder / "config.json").read_text())["pad_token_id"]
    rows = len(open_encoder(folder).get_vocab(with_added_tokens=True))
    return [[token % rows for token in text] for text in [*TEXTS, [8, pad, pad, 7, 2]]]


def scores_rank(_: int, targets: list[Target]) -> list[Tensor]:
    """On each rank, with the process group that it has."""
    return [
        load_reward_model(target, RankEnvironment.from_variables()).scores(texts_of(target.tokenizer))
        for target in targets
    ]


def targets(folders: dict[str, Path], tensor: int = 1, pipeline: int = 1) -> list[Target]:
    return [
        find_target(str(folder), Path("runs"), None, tensor, pipeline, scores=True)
        for folder in folders.values()
    ]


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path]) -> dict[str, Tensor]:
    """Our scores of each folder, of one rank."""
    return dict(zip(folders, run_ranks(1, scores_rank, targets(folders))[0]))


@pytest.mark.parametrize("family", FAMILIES)
def test_our_scores_are_those_of_transformers(
    folders: dict[str, Path], alone: dict[str, Tensor], family: str
) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folders[family]).eval()
    texts = texts_of(folders[family])
    assert alone[family].std() > 0.1
    torch.testing.assert_close(alone[family], peer_scores(model, texts), atol=1e-5, rtol=0)
    torch.testing.assert_close(alone[family], peer_scores(model, texts, pad=3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", ["tensor", "pipeline"])
def test_ranks_that_share_the_model_all_have_the_scores_of_one(
    folders: dict[str, Path], alone: dict[str, Tensor], layout: str
) -> None:
    for told in run_ranks(2, scores_rank, targets(folders, **{layout: 2})):
        for scores, expected in zip(told, alone.values(), strict=True):
            torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", [some_in_soak(family, QUICK_FAMILIES) for family in FAMILIES])
def test_a_run_scores_as_the_folder_that_it_is_exported_to(
    tmp_path: Path, folders: dict[str, Path], tokenizer: Path, alone: dict[str, Tensor], family: str
) -> None:
    run = write_run(reward_config(tmp_path, family, tokenizer), folders[family])
    texts = texts_of(folders[family])
    with open_reward_model(find_target(str(run), tmp_path, scores=True)) as model:
        assert model.scores(texts) == alone[family].tolist()
    told = opened(exported(run))
    assert (told.config.num_labels, told.config.pad_token_id) == (1, 3)
    for pad in (None, 3):
        torch.testing.assert_close(peer_scores(told, texts, pad), alone[family], atol=1e-5, rtol=0)


def exported(run: Path) -> Path:
    out = run.with_name(f"{run.name}-exported")
    plan_export(str(run), run.parent, None, "fp32").write(out, 10**9, lambda _: None)
    return out


def opened(folder: Path) -> Any:
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()


@pytest.mark.parametrize("template", [some_in_soak(template, QUICK_TEMPLATES) for template in OURS])
def test_a_user_of_the_export_scores_what_was_trained(
    tmp_path: Path, folders: dict[str, Path], tokenizer: Path, template: str
) -> None:
    """Its chat template ends where an answer does, and what pads is not what ends it: here EOS is the
    tokenizer's padding, as in many."""
    own = shutil.copytree(tokenizer, tmp_path / "tokenizer")
    file = own / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token": "</s>"}))
    config = reward_config(tmp_path, "llama", own, preferences={"chat_template": template})
    run = write_run(config, folders["llama"])
    out = exported(run)
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    assert theirs.pad_token == "<s>"
    longer = [*CHAT, {"role": "user", "content": "seven?"}, {"role": "assistant", "content": "six."}]
    batch = theirs.apply_chat_template([CHAT, longer], padding=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        told = opened(out)(**batch).logits[:, 0]
    encoder = chat_encoder(config, own, POSITIONS)
    texts = [tokens_of(encoder, chat) for chat in (CHAT, longer)]
    assert all(text[-1] in encoder.stops for text in texts)
    for target in (run, out):
        with open_reward_model(find_target(str(target), tmp_path, scores=True)) as model:
            torch.testing.assert_close(torch.tensor(model.scores(texts)), told, atol=1e-5, rtol=0)
    again = chat_encoder(find_target(str(out), tmp_path, scores=True).config, out, POSITIONS)
    assert [tokens_of(again, chat) for chat in (CHAT, longer)] == texts


def tokens_of(encoder: ChatEncoder, chat: list[dict[str, str]]) -> list[int]:
    [found] = encoder.answered([(Conversation(tuple(chat)), len(chat) - 1)])
    assert isinstance(found, Answered)
    return found.example.tokens.tolist()


def test_without_any_token_to_pad_with_transformers_takes_one_text_at_a_time(
    tmp_path: Path, folders: dict[str, Path], tokenizer: Path, alone: dict[str, Tensor]
) -> None:
    """As gpt2's, whose only special token ends a text."""
    own = shutil.copytree(tokenizer, tmp_path / "tokenizer")
    tree = json.loads((own / "tokenizer.json").read_text())
    tree["added_tokens"] = [token for token in tree["added_tokens"] if token["content"] == "</s>"]
    (own / "tokenizer.json").write_text(json.dumps(tree))
    (own / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "</s>"}))
    config = reward_config(tmp_path, "gpt2", own, preferences={"chat_template": "plain"})
    told = opened(exported(write_run(config, folders["gpt2"])))
    assert told.config.pad_token_id is None
    texts = texts_of(folders["gpt2"])
    torch.testing.assert_close(peer_scores(told, texts), alone["gpt2"], atol=1e-5, rtol=0)


def test_a_model_is_used_for_what_it_is(tmp_path: Path, folders: dict[str, Path], tokenizer: Path) -> None:
    folder = folders["llama"]
    run = write_run(reward_config(tmp_path, "llama", tokenizer), folder)
    for target in (folder, run):
        with pytest.raises(InputError, match="scores answers and cannot write; `llmscale score`"):
            find_target(str(target), tmp_path)
    with pytest.raises(InputError, match="scores texts and does not write; `llmscale score`"):
        plan_import(folder, tmp_path / "imported", None)
    writer = tmp_path / "writer"
    described = transformers.AutoConfig.from_pretrained(folder)
    transformers.AutoModelForCausalLM.from_config(described).save_pretrained(writer)
    shutil.copyfile(tokenizer / "tokenizer.json", writer / "tokenizer.json")
    several = tmp_path / "several"
    described = transformers.AutoConfig.from_pretrained(folder, num_labels=3)
    transformers.AutoModelForSequenceClassification.from_config(described).save_pretrained(several)
    for target in (writer, several):
        with pytest.raises(InputError, match="is no reward model; train one with task=reward"):
            find_target(str(target), tmp_path, scores=True)
    with pytest.raises(InputError, match="tells labels of texts and cannot write"):
        find_target(str(several), tmp_path)


def test_only_a_reward_may_begin_from_a_folder_with_a_head(folders: dict[str, Path], tokenizer: Path) -> None:
    folder = folders["llama"]
    config = reward_config(Path("runs"), "llama", tokenizer)
    assert config.model.vocabulary_size is None
    begun = config.model_copy(update={"train": config.train.model_copy(update={"init_from": folder})})
    assert check_init_from(begun) == []
    [problem] = check_init_from(begun.model_copy(update={"task": "dpo"}))
    assert "needs a model that writes" in problem.message
