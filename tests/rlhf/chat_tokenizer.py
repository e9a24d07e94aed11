"""A small tokenizer that knows the tokens of our chat templates."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from llmscale.data.train_tokenizer import train_tokenizer
from tests.data.corpora import sources_of

NAMES = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def make_chat_tokenizer(folder: Path) -> Path:
    train_tokenizer(sources_of("json"), folder, 600, "bpe", threads=1)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in NAMES])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
