"""What a Hugging Face tokenizer folder says, read without importing transformers (which takes seconds).

`tokenizer.json` is the one file that decides how text becomes tokens; its SHA-256 stands in every
corpus and checkpoint. `tokenizer_config.json` names the special tokens.
"""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer

from llmscale.config.problems import InputError, Problem

TOKENIZER = "tokenizer.json"


def tokenizer_hash(path: Path) -> str:
    """SHA-256 of `path`/tokenizer.json, in hexadecimal."""
    return hashlib.sha256(_tokenizer_file(path).read_bytes()).hexdigest()


def vocabulary_size(path: Path) -> int:
    """The largest token id plus one, added tokens included."""
    file = _tokenizer_file(path)
    return _vocabulary_size(file, file.stat().st_mtime_ns)


@lru_cache(8)
def _vocabulary_size(file: Path, _modified: int) -> int:
    try:
        tree = cast(dict[str, Any], json.loads(file.read_bytes()))
        vocabulary = tree["model"]["vocab"]
        ids = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
        return 1 + max([*ids, *(token["id"] for token in tree.get("added_tokens", []))])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = Problem("tokenizer.path", file.parent, f"tokenizer.json cannot be read: {error!r}")
        raise InputError([problem]) from None


def end_of_document_id(path: Path) -> int:
    """Id of the token that ends a document: the tokenizer's `eos_token`."""
    file = path / "tokenizer_config.json"
    try:
        token = json.loads(file.read_bytes())["eos_token"]
        name = token["content"] if isinstance(token, dict) else token
        found = open_encoder(path).token_to_id(name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = Problem("tokenizer.path", path, f"{file.name} names no eos_token: {error!r}")
        raise InputError([problem]) from None
    if found is None:
        raise InputError(
            [Problem("tokenizer.path", path, f"its eos_token {name!r} is not in its vocabulary")]
        )
    return found


def special_token_ids(path: Path) -> dict[str, int | None]:
    """Ids of the tokens that begin, end and pad a text, as a `config.json` names them; or None."""
    names, encoder = special_tokens(path), open_encoder(path)
    ids: dict[str, int | None] = {}
    for kind in ("bos", "eos", "pad"):
        token = names.get(f"{kind}_token")
        ids[f"{kind}_token_id"] = None if token is None else encoder.token_to_id(token)
    return ids


def special_tokens(path: Path) -> dict[str, str]:
    """`bos_token`, `eos_token` and what else `tokenizer_config.json` names so, as text."""
    tree = _tokenizer_config(path)
    named = {key: tree.get(key) for key in tree if key.endswith("_token")}
    texts = {key: token.get("content") if isinstance(token, dict) else token for key, token in named.items()}
    return {key: text for key, text in texts.items() if isinstance(text, str)}


def adds_bos(path: Path) -> bool:
    """Whether texts of this tokenizer begin with its BOS."""
    bos = special_token_ids(path)["bos_token_id"]
    said = _tokenizer_config(path).get("add_bos_token")
    if bos is None or isinstance(said, bool):
        return bos is not None and bool(said)
    return open_encoder(path).encode("", add_special_tokens=True).ids[:1] == [bos]


def open_encoder(path: Path) -> Tokenizer:
    """The tokenizer for text that is data: `</s>` in it is four characters, never the end of a document."""
    try:
        encoder = Tokenizer.from_file(str(_tokenizer_file(path)))
    except InputError:
        raise
    except Exception as error:  # the library raises nothing narrower
        problem = Problem("tokenizer.path", path, f"tokenizer.json cannot be read: {error}")
        raise InputError([problem]) from None
    encoder.encode_special_tokens = True
    encoder.no_truncation()
    encoder.no_padding()
    return encoder


def _tokenizer_config(path: Path) -> dict[str, Any]:
    file = path / "tokenizer_config.json"
    return json.loads(file.read_bytes()) if file.is_file() else {}


def _tokenizer_file(path: Path) -> Path:
    file = path / TOKENIZER
    if not file.is_file():
        missing = "has no tokenizer.json" if path.is_dir() else "is no folder"
        way_out = "train one with `llmscale data tokenizer`, or name a Hugging Face tokenizer folder"
        raise InputError([Problem("tokenizer.path", path, f"{missing}; {way_out}")])
    return file
