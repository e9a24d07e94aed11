"""The head beside transformers' models for classification: the same training, the same scores.

Shapes: B texts, S tokens of the longest, L scores.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from llmscale.config.schema import Config
from llmscale.data.batch import Batch
from llmscale.data.row import Row, batch_of
from llmscale.engine.engine import Engine
from llmscale.model.huggingface import hugging_face_config
from llmscale.model.tensors import hugging_face_shapes
from llmscale.objectives.classify import MOST_CONFUSED, Classify
from llmscale.objectives.pooling import pooled_scores
from llmscale.objectives.regress import Regress
from llmscale.objectives.table import objective_of
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from llmscale.run.export_head import Padding, with_head
from tests.ranks import run_ranks

VOCABULARY, LENGTH, TEXTS, STEPS = 201, 16, 4, 20
PAD = 0
FAMILIES = ("llama", "qwen3", "gpt2")
Texts = list[tuple[list[int], float]]


def config_of(family: str, problem: str) -> Config:
    model = {"family": family, "hidden_size": 32, "layers": 2, "heads": 4, "vocabulary_size": VOCABULARY}
    labels = ["no", "maybe", "yes"] if problem == "single_label" else []
    return Config.model_validate(
        {
            "task": "classify",
            "model": model | {"ffn_size": 64, "tie_embeddings": family == "gpt2"},
            "classify": {"problem": problem, "labels": labels},
            "train": {
                "precision": "fp32",
                "global_batch_size": TEXTS,
                "micro_batch_size": TEXTS // 2,
                "sequence_length": LENGTH,
            },
            "optimizer": {"lr": 1e-3, "schedule": "constant", "clip": 0.0, "weight_decay": 0.1},
        }
    )


def texts_of_step(step: int, problem: str) -> Texts:
    generator = torch.Generator().manual_seed(step)
    found: Texts = []
    for _ in range(TEXTS):
        length = int(torch.randint(3, LENGTH + 1, (), generator=generator))
        tokens = torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()
        target = float(torch.randint(3, (), generator=generator))
        found.append((tokens, target if problem == "single_label" else target - 0.7))
    return found


def row_of(tokens: list[int], target: float) -> Row:
    padding = LENGTH - len(tokens)
    mask = torch.zeros(LENGTH)
    mask[len(tokens) - 1] = 1.0
    ids = torch.tensor(tokens + [PAD] * padding)
    return Row(ids, ids, mask, torch.arange(LENGTH), padding=padding, targets=(target,))


def batches_of(texts: Texts) -> list[Batch]:
    rows = [row_of(*text) for text in texts]
    return [batch_of(rows[: TEXTS // 2]), batch_of(rows[TEXTS // 2 :])]


def train_ours(_: int, config: Config) -> tuple[list[float], dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Losses, the weights at first and at last, and the scores of one microbatch then."""
    world = World(Layout(), torch.device("cpu"))
    engine = Engine(config, world, VOCABULARY, objective_of(config))
    first = weights_of(engine)
    problem = config.classify.problem
    losses = [engine.step(batches_of(texts_of_step(step, problem))).loss for step in range(STEPS)]
    with world.active(), torch.no_grad():
        engine.module.eval()
        batch = batches_of(texts_of_step(0, problem))[0]
        scores_BL = pooled_scores(engine.chunks[0](batch.tokens_BS, batch.position_ids_BS), batch)
    return losses, first, weights_of(engine), scores_BL


def weights_of(engine: Engine) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for piece in engine.weight_pieces():
        whole = found.setdefault(piece.name, torch.full(piece.shape, torch.nan))
        whole[piece.box.slices] = piece.data
    return found


def peer_of(config: Config, weights: dict[str, Tensor]) -> transformers.PreTrainedModel:
    tree = hugging_face_config(config.model, VOCABULARY, LENGTH)
    special = {"bos_token_id": None, "eos_token_id": None}
    tree = with_head(tree | special, config.classify, Padding(PAD))
    described = transformers.AutoConfig.for_model(**tree)
    model = transformers.AutoModelForSequenceClassification.from_config(described)
    assert model.config.problem_type in ("single_label_classification", "regression")
    model.load_state_dict(weights)
    return model


def train_theirs(config: Config, weights: dict[str, Tensor]) -> list[float]:
    model = peer_of(config, weights).train()
    options = config.optimizer
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": options.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=options.lr,
        betas=options.betas,
        eps=options.epsilon,
    )
    losses: list[float] = []
    for step in range(STEPS):
        loss = model(**padded(texts_of_step(step, config.classify.problem), config)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def padded(texts: Texts, config: Config) -> dict[str, Tensor]:
    """As a tokenizer of transformers pads: to the longest text, with a mask."""
    longest = max(len(tokens) for tokens, _ in texts)
    ids = torch.tensor([tokens + [PAD] * (longest - len(tokens)) for tokens, _ in texts])
    mask = torch.tensor([[1] * len(tokens) + [0] * (longest - len(tokens)) for tokens, _ in texts])
    targets = torch.tensor([target for _, target in texts])
    labels = targets.long() if config.classify.problem == "single_label" else targets
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize(
    ("family", "problem"), [*((family, "single_label") for family in FAMILIES), ("llama", "regression")]
)
def test_training_is_that_of_transformers(family: str, problem: str) -> None:
    config = config_of(family, problem)
    [(losses, first, last, scores_BL)] = run_ranks(1, train_ours, config)
    shapes = hugging_face_shapes(config.model, VOCABULARY, LENGTH, config.outputs)
    assert {name: tuple(tensor.shape) for name, tensor in first.items()} == shapes
    expected = train_theirs(config, first)
    assert losses == pytest.approx(expected, abs=1e-5)
    assert losses[0] != pytest.approx(losses[-1], abs=1e-3)
    model = peer_of(config, last).eval()
    with torch.no_grad():
        theirs_BL = model(**padded(texts_of_step(0, problem)[: TEXTS // 2], config)).logits
    torch.testing.assert_close(scores_BL, theirs_BL, atol=1e-5, rtol=0)


def scored(scores: list[list[float]], targets: list[float]) -> tuple[Tensor, Batch]:
    """Scores [S, B = 1, L] of texts of one token each."""
    count = len(scores)
    tokens = torch.zeros(1, count, dtype=torch.int64)
    batch = Batch(tokens, tokens, torch.ones(1, count), tokens, targets_BL=torch.tensor([targets]))
    return torch.tensor(scores)[:, None], batch


@pytest.mark.parametrize("padding_labels", [0, MOST_CONFUSED])
def test_figures_of_a_classification(padding_labels: int) -> None:
    """Three texts of a, of which two are told right; one of b, told wrong; c is told once and never there."""
    labels = ["a", "b", "c", *(f"never {number}" for number in range(padding_labels))]
    objective = Classify(labels)
    told, true = [0, 0, 2, 0], [0.0, 0.0, 0.0, 1.0]
    rows = F.one_hot(torch.tensor(told), len(labels)).float().tolist()
    scores, batch = scored(rows, true)
    model: Any = None
    sums = objective.sums(model, scores, batch).tolist()
    assert len(sums) == objective.sum_count
    found = objective.metrics(sums)
    assert found["accuracy"] == 0.5
    # a: precision 2/3, recall 2/3; b and c: 0.
    assert found["f1"]["a"] == pytest.approx(2 / 3)  # pyright: ignore[reportIndexIssue, reportArgumentType, reportCallIssue, reportOptionalSubscript]
    assert found["macro_f1"] == pytest.approx(2 / 9)
    assert ("confusion" in found) == (padding_labels == 0)
    if padding_labels == 0:
        assert found["confusion"] == [[2, 0, 1], [1, 0, 0], [0, 0, 0]]
    loss = objective.loss_sum(model, scores, batch).item()
    assert loss == pytest.approx(
        F.cross_entropy(scores[:, 0], torch.tensor(true).long()).item() * 4, rel=1e-6
    )


def test_figures_of_a_regression() -> None:
    true, told = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([1.5, 1.0, 5.0, 7.0])
    scores, batch = scored(told[:, None].tolist(), true.tolist())
    model: Any = None
    found = Regress().metrics(Regress().sums(model, scores, batch).tolist())
    error = told - true
    assert found["mse"] == pytest.approx(error.square().mean().item())
    assert found["mae"] == pytest.approx(error.abs().mean().item())
    assert found["r2"] == pytest.approx(
        1 - (error.square().sum() / (true - true.mean()).square().sum()).item()
    )
    assert found["pearson"] == pytest.approx(torch.corrcoef(torch.stack((true, told)))[0, 1].item())


def test_a_regression_to_one_number_has_no_correlation() -> None:
    scores, batch = scored([[1.0], [2.0]], [3.0, 3.0])
    model: Any = None
    found = Regress().metrics(Regress().sums(model, scores, batch).tolist())
    assert (found["r2"], found["pearson"]) == (None, None)
    assert found["mse"] == pytest.approx(2.5)
