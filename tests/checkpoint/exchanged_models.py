"""Random models of transformers, and what ranks of ours compute with their weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import transformers
from torch import Tensor

from llmscale.checkpoint.agreement import Agreement
from llmscale.checkpoint.begin import begin_from
from llmscale.config.schema import Config, ModelSection
from llmscale.model.build import build_chunks
from llmscale.model.language_model import LanguageModel
from llmscale.model.weights import weights_to_fill
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from tests.peers import peer

VOCABULARY, POSITIONS = 501, 40
SIZES = {"hidden_size": 64, "layers": 2, "heads": 4, "ffn_size": 112, "vocabulary_size": VOCABULARY}
SCALING = {"factor": 4.0, "original_max_positions": 16}
CASES: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama", "kv_heads": 2, "rope_scaling": {"type": "linear", "factor": 2.5}},
    "llama, tied": {
        "family": "llama", "kv_heads": 2, "tie_embeddings": True, "rope_base": 5e5, "rope_scaling": SCALING
    },
    "mistral": {"family": "mistral", "kv_heads": 2, "sliding_window": 7, "norm_epsilon": 1e-6},
    "qwen3, tied": {"family": "qwen3", "kv_heads": 2, "head_size": 24, "tie_embeddings": True},
    "gpt2": {"family": "gpt2", "tie_embeddings": False},
    "gpt2, tied": {"family": "gpt2"},
}  # fmt: skip
LAYOUTS: dict[str, dict[str, int]] = {
    "one rank": {},
    "tensor 2": {"tensor": 2},
    "pipeline 2": {"pipeline": 2},
}


def section(case: str) -> ModelSection:
    return ModelSection.model_validate(SIZES | CASES[case] | {"max_positions": POSITIONS})


def random_peer(case: str) -> transformers.PreTrainedModel:
    """Norm weights and biases are random, too: at 1 and 0 many mistakes cancel."""
    torch.manual_seed(7)
    model = peer(section(case), VOCABULARY, POSITIONS).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() == 1 else 0.05))
    return model


def tokens_BS() -> Tensor:
    return torch.randint(VOCABULARY, (2, POSITIONS), generator=torch.Generator().manual_seed(1))


def layout_config(model: ModelSection, layout: str) -> Config:
    parallel = LAYOUTS[layout]
    ranks = parallel.get("tensor", 1) * parallel.get("pipeline", 1)
    return Config.model_validate(
        {
            "model": model.model_dump(),
            "train": {"precision": "fp32", "sequence_length": POSITIONS},
            "parallel": parallel,
            "cluster": {"processes_per_node": ranks},
        }
    )


def logits_rank(
    _rank: int, sources: Mapping[Path, ModelSection], layout: str, grown: Mapping[str, int] | None = None
) -> dict[Path, Tensor]:
    """Logits [B, S, V] of the weights in each source, on the first rank that has whole ones; else nothing."""
    found: dict[Path, Tensor] = {}
    for source, model in sources.items():
        config = layout_config(model, layout)
        world = World(Layout.of(config.parallel, config.world_size), torch.device("cpu"))
        rows = model.vocabulary_size or VOCABULARY
        with world.active(), torch.no_grad():
            chunks = build_chunks(config.model, config.train, rows, world)
            with weights_to_fill(chunks) as pieces:
                agreement = Agreement(world.rank, world.layout.world_size, world.control_group)
                begin_from(source, pieces, agreement, list(grown or ()))
            logits_SBV = _forward(chunks[0].eval(), world)
        if logits_SBV is not None:
            found[source] = logits_SBV.transpose(0, 1).clone()
    return found


def _forward(chunk: LanguageModel, world: World) -> Tensor | None:
    """Through the stages one after the other."""
    tokens = tokens_BS()
    positions_BS = torch.arange(POSITIONS).expand_as(tokens)
    if not world.is_first_stage:
        hidden = torch.empty(POSITIONS, len(tokens), chunk.config.hidden_size)
        torch.distributed.recv(hidden, 0)
        chunk.set_input_tensor(hidden)
    hidden = chunk.hidden_states(tokens, positions_BS)
    if not world.is_last_stage:
        torch.distributed.send(hidden.contiguous(), 1)
        return None
    return chunk.gathered_logits(hidden)
