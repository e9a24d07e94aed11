"""Train a SentencePiece tokenizer and convert it, once, to a Hugging Face folder.

The tokenizer is made for text that must come back as it was, source code above all: no normalisation,
no space put before the text, newlines and runs of spaces as tokens, bytes for whatever is not in the
vocabulary. In the converted file a space is a space: SentencePiece writes it as `▁`, and so cannot tell
it from a real `▁` in the text.

The conversion is exact, and proved on a sample at the end of each training:

- No piece has a space after another character. Cutting text before each run of spaces therefore
  changes nothing, and makes encoding fast.
- Unigram scores are rounded to 1/64. SentencePiece adds them in float32, the converted tokenizer in
  float64, and equal sums would else be told apart by rounding. Multiples of 1/64 add up exactly in both.
- Special tokens and byte pieces cannot be written in the text: BPE has no merge that leads to them,
  Unigram gives them a score that no path takes.
"""

import io
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from llmscale.config.problems import InputError, Problem
from llmscale.data.files import replace_folder

TokenizerKind = Literal["bpe", "unigram"]

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")
"""Ids 0 to 3."""
FIRST_PIECE = len(SPECIAL_TOKENS) + 256
"""Special tokens and the 256 bytes come first."""
SPACE = "\u2581"
"""How SentencePiece writes a space."""
SCORE_UNIT = 1 / 64
UNREACHABLE_SCORE = -1e4
REQUIRED_CHARACTERS = "\n" + "".join(map(chr, range(33, 127)))
CHUNK_CHARACTERS = 2000
SAMPLE_CHARACTERS = {"bpe": 30_000_000, "unigram": 6_000_000}
"""Text that training reads at most: more changes little, and unigram takes long over it."""


@dataclass(frozen=True)
class TrainedTokenizer:
    """What a training made."""

    folder: Path
    vocabulary_size: int
    trained_characters: int
    checked_texts: int
    """Texts on which SentencePiece and the converted tokenizer gave the same tokens."""


def train_tokenizer(
    texts: Iterable[str],
    output_folder: Path,
    vocabulary_size: int,
    kind: TokenizerKind = "bpe",
    *,
    seed: int = 0,
    threads: int = 4,
) -> TrainedTokenizer:
    """Train on `texts` (whole documents) and write `output_folder`, a Hugging Face tokenizer.

    A random sample of the texts is read where they are long. The result depends on the texts' order,
    the seed and the number of threads only through that sample.

    Raises:
        InputError: no text, a vocabulary that SentencePiece cannot make of it, or a folder in use.
    """
    if output_folder.exists() and any(output_folder.iterdir()):
        raise InputError([Problem("--output", output_folder, "is not empty; choose another folder")])
    chunks = _sample(texts, SAMPLE_CHARACTERS[kind], seed)
    if not chunks:
        raise InputError([Problem("INPUT", "", "holds no text to train on")])
    model = _train(chunks, vocabulary_size, kind, threads)
    if kind == "unigram":
        model = _round_scores(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)  # type: ignore[call-arg]
    tokenizer = convert(processor, kind)
    checked = chunks[:2000]
    check_agreement(processor, tokenizer, checked)
    with replace_folder(output_folder) as folder:
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(_transformers_config(), indent=2) + "\n")
    return TrainedTokenizer(output_folder, vocabulary_size, sum(map(len, chunks)), len(checked))


def convert(processor: sentencepiece.SentencePieceProcessor, kind: TokenizerKind) -> Tokenizer:
    """The same tokenizer in Hugging Face's form."""
    pieces: list[str] = [processor.id_to_piece(number) for number in range(processor.vocab_size())]  # type: ignore[attr-defined]
    pieces[FIRST_PIECE:] = [piece.replace(SPACE, " ") for piece in pieces[FIRST_PIECE:]]
    scores: list[float] = [processor.get_score(number) for number in range(len(pieces))]  # type: ignore[attr-defined]
    tokenizer = Tokenizer(_bpe(pieces, scores) if kind == "bpe" else _unigram(pieces, scores))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(" *[^ ]+| +"), "isolated")  # type: ignore[assignment]
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])  # type: ignore[assignment]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return tokenizer


def check_agreement(
    processor: sentencepiece.SentencePieceProcessor, tokenizer: Tokenizer, texts: Sequence[str]
) -> None:
    """Encode `texts` with both, and decode them again.

    Raises:
        RuntimeError: at the first text that differs.
    """
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True
    for text in texts:
        tokens = plain.encode(text, add_special_tokens=False).ids
        # SentencePiece takes a `▁` of the text for a space, so it has nothing to say about such text.
        if SPACE not in text and tokens != processor.encode(text):  # type: ignore[attr-defined]
            raise RuntimeError(f"the converted tokenizer differs from SentencePiece on {text!r}")
        if plain.decode(tokens, skip_special_tokens=False) != text:
            raise RuntimeError(f"the tokenizer does not give back {text!r}")


def _sample(texts: Iterable[str], characters: int, seed: int) -> list[str]:
    """Pieces of `texts` at line ends, in random order, about `characters` in all."""
    generator = random.Random(seed)
    kept: list[str] = []
    total, share = 0, 1.0
    for text in texts:
        for chunk in _chunks(text):
            if generator.random() >= share:
                continue
            kept.append(chunk)
            total += len(chunk)
            if total > 2 * characters:
                generator.shuffle(kept)
                kept, share = kept[: len(kept) // 2], share / 2
                total = sum(map(len, kept))
    generator.shuffle(kept)
    while total > characters and len(kept) > 1:
        total -= len(kept.pop())
    return kept


def _chunks(text: str) -> Iterator[str]:
    lines: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        for start in range(0, len(line), CHUNK_CHARACTERS):
            part = line[start : start + CHUNK_CHARACTERS]
            if size + len(part) > CHUNK_CHARACTERS:
                yield "".join(lines)
                lines, size = [], 0
            lines.append(part)
            size += len(part)
    if lines:
        yield "".join(lines)


def _train(chunks: Sequence[str], vocabulary_size: int, kind: TokenizerKind, threads: int) -> bytes:
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(  # type: ignore[attr-defined]
            sentence_iterator=iter(chunks),
            model_writer=written,
            model_type=kind,
            vocab_size=vocabulary_size,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            byte_fallback=True,
            character_coverage=0.9999,
            required_chars=REQUIRED_CHARACTERS,
            max_sentence_length=8 * CHUNK_CHARACTERS,
            num_threads=threads,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rsplit(") ", 1)[-1].strip()
        message = f"SentencePiece cannot make it of this text: {reason}"
        raise InputError([Problem("--vocabulary-size", vocabulary_size, message)]) from None
    return written.getvalue()


def _round_scores(model: bytes) -> bytes:
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(model)
    for piece in proto.pieces[FIRST_PIECE:]:
        piece.score = round(piece.score / SCORE_UNIT) * SCORE_UNIT
    return proto.SerializeToString()


def _bpe(pieces: list[str], scores: list[float]) -> models.BPE:
    """SentencePiece merges what makes the piece of the best score; here each way to make it is a merge."""
    normal = set(pieces[FIRST_PIECE:])
    merges: list[tuple[str, str]] = []
    for _, piece in sorted(zip(scores[FIRST_PIECE:], pieces[FIRST_PIECE:]), key=lambda pair: -pair[0]):
        parts = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        merges += [(left, right) for left, right in parts if left in normal and right in normal]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)


def _unigram(pieces: list[str], scores: list[float]) -> models.Unigram:
    reachable = [UNREACHABLE_SCORE] * FIRST_PIECE + scores[FIRST_PIECE:]
    return models.Unigram(list(zip(pieces, reachable)), unk_id=0, byte_fallback=True)


def _transformers_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
