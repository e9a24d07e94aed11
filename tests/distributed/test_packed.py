"""A packed row gives each token the loss that its document alone gives it, under every layout."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from llmscale.data.batch import Batch
from llmscale.engine.engine import Engine
from llmscale.model.language_model import LanguageModel
from llmscale.objectives.causal_lm import CausalLM
from llmscale.objectives.label_losses import label_losses
from llmscale.parallel.layout import Layout
from llmscale.parallel.rng import derived_seed
from llmscale.parallel.world import World
from tests.distributed.parity import parity_config, randomise_vectors
from tests.ranks import run_ranks

ROW = 24
VOCABULARY = 1000
LAYOUTS = {
    "one rank": {},
    "tp2": {"tensor": 2},
    "pp2": {"pipeline": 2},
    "sp2-pp2-recompute": {"tensor": 2, "sequence": True, "pipeline": 2, "recompute": "full"},
}


class TokenLosses(CausalLM):
    """Reports the loss of each place of the rows, summed over them."""

    sum_count = ROW

    def sums(self, model: LanguageModel, output: Tensor, batch: Batch) -> Tensor:
        losses_BS = label_losses(model, output, batch)
        return torch.nn.functional.pad((losses_BS * batch.loss_mask_BS).sum(0), (0, ROW - losses_BS.shape[1]))


def documents(seed: int) -> list[Tensor]:
    """Of random lengths, which fill a row; each with the token that follows it."""
    generator = torch.Generator().manual_seed(seed)
    lengths: list[int] = []
    while sum(lengths) < ROW:
        lengths.append(min(int(torch.randint(1, 12, (), generator=generator)), ROW - sum(lengths)))
    return [torch.randint(0, VOCABULARY, (length + 1,), generator=generator) for length in lengths]


def packed_row(parts: Sequence[Tensor]) -> Batch:
    lengths = tuple(len(part) - 1 for part in parts)
    return Batch(
        tokens_BS=torch.cat([part[:-1] for part in parts])[None],
        labels_BS=torch.cat([part[1:] for part in parts])[None],
        loss_mask_BS=torch.ones(1, sum(lengths)),
        position_ids_BS=torch.cat([torch.arange(length) for length in lengths])[None],
        document_lengths=(lengths,),
    )


def row_of_one(part: Tensor) -> Batch:
    """The document alone, padded to the row's length as a sequence-parallel layout needs it."""
    tokens, padding = len(part) - 1, ROW - (len(part) - 1)
    mask = torch.cat((torch.ones(tokens), torch.zeros(padding)))
    whole = torch.nn.functional.pad(part, (0, padding))
    return Batch(whole[None, :-1], whole[None, 1:], mask[None], torch.arange(ROW)[None])


def losses_on_rank(_: int, family: str, layout: dict[str, object], seeds: Sequence[int]) -> float:
    """The largest difference between a token's loss in a packed row and alone."""
    config = parity_config(family, **layout)  # pyright: ignore[reportArgumentType]
    world = World(Layout.of(config.parallel, config.world_size), torch.device("cpu"))
    engine = Engine(config, world, VOCABULARY, TokenLosses())
    randomise_vectors(engine)
    worst = 0.0
    for seed in seeds:
        parts = documents(derived_seed(family, seed))
        packed = engine.evaluate([packed_row(parts)]).others
        start = 0
        for part in parts:
            alone = engine.evaluate([row_of_one(part)]).others
            for place in range(len(part) - 1):
                worst = max(worst, abs(packed[start + place] - alone[place]) / alone[place])
            start += len(part) - 1
    return worst


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "mistral"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_row_is_its_documents_apart(family: str, layout: str) -> None:
    ranks = parity_config(family, **LAYOUTS[layout]).world_size
    apart = run_ranks(ranks, losses_on_rank, family, LAYOUTS[layout], range(4))
    assert max(apart) <= 1e-6, apart
