"""A small model that writes and one that scores, as transformers saves them, with their tokenizer."""

from pathlib import Path

import torch
import transformers

from llmscale.data.train_tokenizer import train_tokenizer

WORDS = ["amber", "basil", "cedar", "dune", "ember", "fjord", "grove", "heath", "inlet", "jetty", "knoll"]
VOCABULARY, ROW = 384, 48
MODEL = {
    "hidden_size": 64,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "ffn_size": 96,
    "max_positions": ROW,
    "norm_epsilon": 1e-6,
}
"""The config's section of both."""


def make_models(folder: Path) -> Path:
    """`tokenizer`, `writer` and `scorer` in a folder, which is returned."""
    train_tokenizer([" ".join(WORDS)] * 20, folder / "tokenizer", 380, "bpe", threads=1)
    described = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        max_position_embeddings=ROW,
        num_labels=1,
        pad_token_id=0,
    )
    torch.manual_seed(3)
    for name, kind in (
        ("writer", transformers.LlamaForCausalLM),
        ("scorer", transformers.LlamaForSequenceClassification),
    ):
        model = kind(described)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(folder / name)
        transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer" / "tokenizer.json")
        ).save_pretrained(folder / name)
    return folder
