"""A tokenizer as transformers offers it: chat templates, batch encoding, decoding."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llmscale.config.problems import InputError, Problem
from llmscale.data.tokenizer import tokenizer_hash


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder. Nothing is downloaded, and code in the folder is not run.

    Raises:
        InputError: when the folder has no tokenizer.json or transformers cannot read it.
    """
    tokenizer_hash(path)
    try:
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError([Problem("tokenizer.path", path, f"cannot be loaded: {error}")]) from None
