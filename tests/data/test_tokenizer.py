"""Tokenizers: nothing of the text is lost, and the converted one is SentencePiece's."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer

from llmscale.config.problems import InputError
from llmscale.data import train_tokenizer as training
from llmscale.data.pretrained import load_tokenizer
from llmscale.data.tokenizer import end_of_document_id, open_encoder, tokenizer_hash, vocabulary_size
from llmscale.data.train_tokenizer import check_agreement, train_tokenizer
from tests.data.corpora import sources_of

KINDS = ("bpe", "unigram")

ODD_TEXTS = [
    "",
    " ",
    "   leading and trailing   ",
    "def f():\n\tif x:\n\t\treturn  1\n\n\n",
    "windows\r\nline\r\nends\r\n",
    "bell\a null\0 vertical\v form\f escape\x1b delete\x7f",
    "größer, naïve, 日本語テキスト, Привет, שלום, 👩‍👩‍👧‍👦, e\u0301 is not \u00e9",
    "a literal \u2581 block and \u2581\u2581 two",
    "no-break\u00a0space, en\u2002space, line\u2028separator, zero\u200bwidth, bom\ufeff",
    "<s>not the start</s> <unk> <pad> <0x41><0x0A>",
    "-" * 500 + " " * 333 + "=" * 217 + "\n" * 99,
    "１２３ ﬁ ligature Ⅷ ½ full-width ＡＢＣ",
]


def made_up_texts() -> list[str]:
    """Short texts over few letters, where there are many ways to cut a text."""
    generator = random.Random(7)
    alphabets = (
        " a",
        "-= ",
        "ab",
        "aabb ",
        "\n\t ",
        "()[]:\n ",
        "se lf.",
        "</s> <0x41>",
        "é日👍 a",
        "\r\n ",
        "01 ",
    )
    return ["".join(generator.choices(letters, k=generator.randint(1, 80))) for letters in alphabets * 200]


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(f"{request.param}_folder")


def test_every_text_comes_back(folder: Path):
    encoder = open_encoder(folder)
    for text in [*ODD_TEXTS, *made_up_texts(), *sources_of("encodings", "test/test_asyncio")]:
        tokens = encoder.encode(text, add_special_tokens=False).ids
        assert encoder.decode(tokens, skip_special_tokens=False) == text


def test_text_of_data_never_becomes_a_special_token(folder: Path):
    tokens = open_encoder(folder).encode("<s></s><pad><unk> <0x41>", add_special_tokens=False).ids
    assert min(tokens) >= 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_conversion_gives_the_tokens_of_sentencepiece(
    training_texts: list[str], kind: training.TokenizerKind
):
    model = training._train(training_texts[:60], 1500, kind, 2)
    if kind == "unigram":
        model = training._round_scores(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    converted = Tokenizer.from_str(training.convert(processor, kind).to_str())
    converted.encode_special_tokens = True
    texts = [*ODD_TEXTS, *made_up_texts()]
    for whole in sources_of("xml", "http", "tkinter", "multiprocessing", "test/test_json"):
        texts += [whole, *set(whole.splitlines(keepends=True))]
    assert len(texts) > 10_000
    check_agreement(processor, converted, texts)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_the_conversion_over_the_whole_standard_library(kind: training.TokenizerKind):
    texts = sources_of(".")
    chunks = training._sample(texts, 10_000_000, seed=0)
    model = training._train(chunks, 8192, kind, 4)
    if kind == "unigram":
        model = training._round_scores(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    lines = {line for text in texts[:400] for line in text.splitlines(keepends=True)}
    check_agreement(processor, training.convert(processor, kind), [*texts, *lines, *made_up_texts()])


def test_a_conversion_that_differs_is_refused(training_texts: list[str]):
    model = training._train(training_texts[:60], 1500, "bpe", 2)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    other = sentencepiece.SentencePieceProcessor(
        model_proto=training._train(training_texts[60:], 1500, "bpe", 2)
    )
    with pytest.raises(RuntimeError, match="differs from SentencePiece"):
        check_agreement(processor, training.convert(other, "bpe"), training_texts[:5])


def test_whitespace_of_code_is_few_tokens(bpe_folder: Path):
    encoder = open_encoder(bpe_folder)
    assert len(encoder.encode("\n" + " " * 8 + "return self\n").ids) <= 5


def test_transformers_loads_the_folder(folder: Path):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.is_fast
    assert (
        tokenizer.unk_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    ) == (0, 1, 2, 3)
    assert len(tokenizer) == vocabulary_size(folder) == 2000
    assert end_of_document_id(folder) == tokenizer.eos_token_id
    encoder = open_encoder(folder)
    for text in ODD_TEXTS:
        if "<s>" not in text:
            tokens = tokenizer.encode(text, add_special_tokens=False)
            assert tokens == encoder.encode(text, add_special_tokens=False).ids
            assert tokenizer.decode(tokens) == text


def test_training_again_gives_the_same_file(tmp_path: Path, training_texts: list[str]):
    for name in ("a", "b"):
        train_tokenizer(training_texts[:20], tmp_path / name, 700, "bpe", threads=2)
    assert tokenizer_hash(tmp_path / "a") == tokenizer_hash(tmp_path / "b")


def test_a_long_text_is_sampled(monkeypatch: pytest.MonkeyPatch, training_texts: list[str]):
    chunks = training._sample(training_texts, 100_000, seed=0)
    whole = "".join(training_texts)
    assert 80_000 < sum(map(len, chunks)) <= 100_000 < len(whole)
    assert all(chunk in whole for chunk in chunks[:20])
    everything = training._sample(training_texts, len(whole), seed=0)
    assert sum(map(len, everything)) == len(whole)


@pytest.mark.parametrize(
    "texts, size, message",
    [([], 500, "no text"), (["a b c"], 5000, "Vocabulary size"), (["a b"], 100, "Vocabulary")],
)
def test_impossible_trainings_are_refused(tmp_path: Path, texts: list[str], size: int, message: str):
    with pytest.raises(InputError, match=message):
        train_tokenizer(texts, tmp_path / "tokenizer", size)
    assert not (tmp_path / "tokenizer").exists()


def test_an_existing_folder_is_left_alone(bpe_folder: Path, training_texts: list[str]):
    before = tokenizer_hash(bpe_folder)
    with pytest.raises(InputError, match="not empty"):
        train_tokenizer(training_texts, bpe_folder, 700)
    assert tokenizer_hash(bpe_folder) == before


def test_bad_folders_are_refused(tmp_path: Path, bpe_folder: Path):
    for read in (tokenizer_hash, vocabulary_size, open_encoder, load_tokenizer):
        with pytest.raises(InputError, match="is no folder"):
            read(tmp_path / "absent")
        with pytest.raises(InputError, match="no tokenizer.json"):
            read(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    for read in (vocabulary_size, open_encoder):
        with pytest.raises(InputError, match="cannot be read"):
            read(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((bpe_folder / "tokenizer.json").read_bytes())
    with pytest.raises(InputError, match="names no eos_token"):
        end_of_document_id(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<end>"}}))
    with pytest.raises(InputError, match="not in its vocabulary"):
        end_of_document_id(tmp_path)


def test_checks_and_tokenising_need_neither_torch_nor_megatron():
    program = (
        "import sys, llmscale.data.checks, llmscale.data.tokenize;"
        "heavy = {'torch', 'megatron', 'transformers', 'datasets', 'pyarrow'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
