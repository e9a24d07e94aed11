"""Operations a token, against torch's own counter and against brute force."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from llmscale.config.schema import ModelSection
from llmscale.plan.flops import flops_per_token, forward_flops_per_token, mean_tokens_seen

LENGTH = 32
VOCABULARY = 96


def counted_forward_flops(config: LlamaConfig | GPT2Config) -> int:
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, LENGTH, dtype=torch.long))
    return counter.get_total_flops()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_forward_equals_torchs_count(family: str) -> None:
    """The counter sees the full square of scores, of which a causal model needs (length + 1) / 2 a row."""
    model = ModelSection.model_validate(
        {"family": family, "hidden_size": 64, "layers": 2, "heads": 4, "ffn_size": 160}
        | ({} if family == "gpt2" else {"kv_heads": 2})
    )
    if family == "gpt2":
        config = GPT2Config(
            vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=4, n_inner=160
        )
    else:
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=160,
        )
    unseen = 2 * model.layers * 2 * model.hidden_size * (LENGTH - mean_tokens_seen(LENGTH, None)) * LENGTH
    formula = forward_flops_per_token(model, LENGTH, VOCABULARY) * LENGTH
    # The rotary angles are a tiny matrix product of their own in transformers.
    assert counted_forward_flops(config) == pytest.approx(formula + unseen, rel=1e-3)
    assert flops_per_token(model, LENGTH, VOCABULARY) == 3 * formula / LENGTH


@pytest.mark.parametrize(("length", "window"), [(1, None), (7, None), (7, 3), (7, 7), (7, 100), (64, 1)])
def test_mean_tokens_seen(length: int, window: int | None) -> None:
    seen = [min(position + 1, window or length) for position in range(length)]
    assert mean_tokens_seen(length, window) == pytest.approx(sum(seen) / length)


def test_six_flops_a_parameter_for_short_sequences() -> None:
    """The usual rule of thumb, where attention is small: 6 × parameters that multiply."""
    model = ModelSection(hidden_size=4096, layers=32, heads=32, kv_heads=8, ffn_size=14336)
    matrices = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 128256 * 4096
    assert flops_per_token(model, 128, 128256) == pytest.approx(6 * matrices, rel=0.01)
