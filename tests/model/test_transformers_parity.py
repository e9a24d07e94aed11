"""Each family computes what transformers computes from the same weights: logits, loss and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from llmscale.config.schema import Config
from llmscale.data.batch import Batch
from llmscale.engine.engine import Engine
from llmscale.model.regions import Piece
from llmscale.objectives.causal_lm import CausalLM
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from tests.distributed.parity import randomise_vectors
from tests.peers import peer
from tests.ranks import run_ranks

VOCABULARY = 501
BETA = 0.9
SCALING = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_positions": 16}

CASES: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama", "kv_heads": 2},
    "llama-tied-scaled-rope": {
        "family": "llama",
        "kv_heads": 2,
        "tie_embeddings": True,
        "rope_scaling": SCALING,
    },
    "llama-linear-rope": {
        "family": "llama",
        "kv_heads": 1,
        "rope_scaling": {"type": "linear", "factor": 3.0},
    },
    "mistral": {"family": "mistral", "kv_heads": 2, "sliding_window": 7},
    "qwen3": {"family": "qwen3", "kv_heads": 2, "head_size": 24, "rope_base": 1e6, "rope_scaling": SCALING},
    "gpt2": {"family": "gpt2"},
}


def config_of(case: str) -> Config:
    model = {"hidden_size": 64, "layers": 3, "heads": 4, "ffn_size": 112, "vocabulary_size": VOCABULARY}
    return Config.model_validate(
        {
            "model": model | CASES[case],
            "train": {
                "precision": "fp32",
                "global_batch_size": 2,
                "micro_batch_size": 2,
                "sequence_length": 40,
            },
            "optimizer": {"clip": 0.0, "betas": [BETA, 0.95]},
        }
    )


def ours(
    _: int, config: Config, tokens_BS: Tensor
) -> tuple[Tensor, float, dict[str, Tensor], dict[str, Tensor]]:
    """Logits [B, S, V], loss, weights and gradients by Hugging Face name, from one rank."""
    world = World(Layout(), torch.device("cpu"))
    engine = Engine(config, world, VOCABULARY, CausalLM())
    randomise_vectors(engine)
    weights = {
        piece.name: piece.data.clone() for piece in whole_tensors(engine) if "optimizer" not in piece.name
    }
    inputs_BS = tokens_BS[:, :-1].contiguous()
    positions_BS = torch.arange(inputs_BS.shape[1]).expand_as(inputs_BS)
    with world.active(), torch.no_grad():
        logits_BSV = engine.chunks[0](inputs_BS, positions_BS).transpose(0, 1)[..., :VOCABULARY].clone()
    mask_BS = torch.ones(inputs_BS.shape)
    result = engine.step([Batch(inputs_BS, tokens_BS[:, 1:].contiguous(), mask_BS, positions_BS)])
    prefix = "optimizer.exp_avg."
    gradients = {
        piece.name.removeprefix(prefix): piece.data / (1 - BETA)
        for piece in whole_tensors(engine)
        if piece.name.startswith(prefix)
    }
    return logits_BSV, result.loss, weights, gradients


def whole_tensors(engine: Engine) -> list[Piece]:
    """One rank holds each tensor in one piece, except where parts of a fused tensor are apart."""
    whole: dict[str, Tensor] = {}
    for piece in engine.pieces_to_save():
        whole.setdefault(piece.name, torch.empty(piece.shape))[piece.box.slices] = piece.data
    return [Piece(name, tuple(data.shape), (0,) * data.dim(), data) for name, data in whole.items()]


@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_gradients(case: str) -> None:
    config = config_of(case)
    tokens_BS = torch.randint(0, VOCABULARY, (2, 41), generator=torch.Generator().manual_seed(0))
    logits_BSV, loss, weights, gradients = run_ranks(1, ours, config, tokens_BS)[0]
    model = peer(config.model, VOCABULARY, 40)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert unexpected == []
    assert missing in ([], ["lm_head.weight"])
    output = model(input_ids=tokens_BS[:, :-1])
    torch.testing.assert_close(logits_BSV, output.logits, atol=1e-5, rtol=0)
    expected_loss = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), tokens_BS[:, 1:].flatten())
    assert loss == pytest.approx(expected_loss.item(), rel=1e-6)
    expected_loss.backward()
    peers = dict(model.named_parameters())
    assert peers.keys() == gradients.keys()
    for name, gradient in gradients.items():
        expected = peers[name].grad
        assert expected is not None
        torch.testing.assert_close(
            gradient, expected, atol=2e-6 * expected.abs().max().item() + 1e-8, rtol=1e-4
        )
