"""Preference training gives the losses of TRL's trainers: same start, pairs, order and hyper-parameters.

The start is the reference of both. Here the pairs of a step are packed into rows, two to a row; there they
are padded, one, two or all of a step at once. Where TRL's loss is another function than the paper's (ours is
the paper's: `tests/objectives/test_preference_losses.py`), the settings are those under which both are the
same:

* `sigmoid` with label smoothing: TRL has none. Its `aot` has, and is cDPO where one pair is a microbatch, as
  there is nothing to sort.
* `ipo`: TRL takes the mean over the tokens of each answer: `dpo.length_normalised`.
* the SFT term of `sigmoid` and `simpo`: TRL's is the mean over all tokens of the chosen answers of a
  microbatch, ours over the answers of the mean over the tokens of each: the same of one pair at once.
* `orpo`: so is its cross-entropy in TRL, which counts the prompt's tokens, too. The first token of a text is
  nobody's label: a prompt of one token is not counted.
* `kto`: TRL estimates KL from a microbatch, we from the global batch: a step is one microbatch. Mismatched
  are the answers that TRL takes: of those of the step the one before.
"""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llmscale.config.schema import Config
from llmscale.data.batch import Batch
from llmscale.data.example_rows import ExampleRows
from llmscale.data.examples import Example, ExampleSet, write_examples
from llmscale.data.row import LENGTH_UNIT, batch_of, shortened
from llmscale.engine.engine import Engine
from llmscale.engine.reference import with_log_probabilities
from llmscale.objectives.table import objective_of
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from tests.distributed.parity import small_model
from tests.peers_preference import Theirs, losses_of_trl
from tests.peers_trl import single_threaded
from tests.preference_pairs import Judged, Pair, group_of, group_of_pair
from tests.ranks import run_ranks

AGREEMENT = 1e-5
"""Absolute; relative where the loss is above 1."""
VOCABULARY, ROW = 501, 128
EXAMPLES, A_STEP, IN_A_ROW = 20, 4, 2
A_PASS = EXAMPLES // A_STEP
"""Steps of an epoch."""


@dataclass(frozen=True)
class Case:
    """A loss, here and there."""

    section: dict[str, Any]
    """Of the config."""
    theirs: Theirs
    longest_prompt: int = 12

    @property
    def config(self) -> Config:
        return Config.model_validate(
            {
                "model": {**small_model("llama"), "vocabulary_size": VOCABULARY},
                "train": {
                    "steps": 20,
                    "global_batch_size": A_STEP // IN_A_ROW,
                    "micro_batch_size": 1,
                    "sequence_length": ROW,
                    "precision": "fp32",
                },
                "optimizer": {"lr": 1e-3, "warmup_steps": 4, "epsilon": 1e-6, "clip": 1.0},
                **self.section,
            }
        )

    @property
    def examples(self) -> list[Pair | Judged]:
        """Made-up ones, of random tokens and lengths."""
        generator = np.random.default_rng(7)

        def tokens(shortest: int, longest: int) -> list[int]:
            return generator.integers(2, VOCABULARY, generator.integers(shortest, longest + 1)).tolist()

        found: list[Pair | Judged] = []
        for place in range(EXAMPLES):
            prompt, answers = tokens(1, self.longest_prompt), [[*tokens(1, 16), 1] for _ in range(2)]
            if self.theirs.trainer == "kto":
                found.append(Judged(prompt, answers[0], is_good=place % 3 > 0))
            else:
                found.append(Pair(prompt, answers[0], answers[1], margin=generator.random()))
        return found


def dpo(loss: str, at_once: int = 2, beta: float = 0.1, ours: Any = (), theirs: Any = ()) -> Case:
    """
    Args:
        at_once: pairs of TRL's microbatches.
        ours: keys of `dpo`.
        theirs: options of the trainer.
    """
    trainer = {"simpo": "cpo", "orpo": "orpo", "kto": "kto"}.get(loss, "dpo")
    section = {"task": "dpo", "dpo": {"loss": loss, "beta": beta, **dict(ours)}}
    return Case(section, Theirs(trainer, {"beta": beta, **dict(theirs)}, at_once))


EPSILON, WEIGHT, GAMMA = 0.2, 0.3, 0.7
SMOOTHED = {"label_smoothing": EPSILON}
CASES = {
    "sigmoid": dpo("sigmoid", theirs={"precompute_ref_log_probs": True}),
    "sigmoid, smoothed": dpo("sigmoid", 1, ours=SMOOTHED, theirs={"loss_type": ["aot"], **SMOOTHED}),
    "sigmoid, with SFT": dpo(
        "sigmoid",
        1,
        ours={"sft_weight": WEIGHT},
        theirs={"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, WEIGHT]},
    ),
    "ipo": dpo("ipo", ours={"length_normalised": True}, theirs={"loss_type": ["ipo"]}),
    "hinge": dpo("hinge", theirs={"loss_type": ["hinge"]}),
    "robust": dpo("robust", ours=SMOOTHED, theirs={"loss_type": ["robust"], **SMOOTHED}),
    "simpo": dpo(
        "simpo",
        beta=2.0,
        ours={"target_margin": GAMMA},
        theirs={"loss_type": "simpo", "simpo_gamma": GAMMA, "cpo_alpha": 0.0},
    ),
    "orpo": replace(dpo("orpo", 1), longest_prompt=1),
    "kto": dpo(
        "kto",
        A_STEP,
        ours={"desirable_weight": 1.5, "undesirable_weight": 0.75},
        theirs={"desirable_weight": 1.5, "undesirable_weight": 0.75},
    ),
    "reward": Case({"task": "reward"}, Theirs("reward")),
    "reward, with margins": Case({"task": "reward", "reward": {"margin": True}}, Theirs("reward")),
}
RARE = {
    "sigmoid, normalised": dpo(
        "sigmoid", beta=2.0, ours={"length_normalised": True}, theirs={"loss_type": ["sigmoid_norm"]}
    ),
    "sigmoid, reference beside": dpo("sigmoid", A_STEP, beta=0.5),
    "simpo, with SFT": dpo(
        "simpo",
        1,
        beta=2.0,
        ours={"target_margin": GAMMA, "sft_weight": WEIGHT},
        theirs={"loss_type": "simpo", "simpo_gamma": GAMMA, "cpo_alpha": WEIGHT},
    ),
    "kto, precomputed": dpo("kto", A_STEP, theirs={"precompute_ref_log_probs": True}),
}
Trained = tuple[dict[str, Tensor], list[float]]
"""The weights of the start, by Hugging Face name, and the loss of each step."""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate takes a process that has been a rank before, in another test, for one of many."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)


@cache
def all_of_ours(is_rare: bool) -> dict[str, Trained]:
    """One after the other in the same rank."""
    cases = RARE if is_rare else CASES
    return dict(zip(cases, run_ranks(1, _on_rank, list(cases.values()))[0]))


def _on_rank(_: int, cases: Sequence[Case]) -> list[Trained]:
    return [_train(case) for case in cases]


def _train(case: Case) -> Trained:
    config, world = case.config, World(Layout(), torch.device("cpu"))
    engine = Engine(config, world, VOCABULARY, objective_of(config))
    weights: dict[str, Tensor] = {}
    for piece in engine.weight_pieces():
        weights.setdefault(piece.name, torch.empty(piece.shape))[piece.box.slices] = piece.data
    batches = batches_of(case)
    if config.has_reference:
        with world.active():
            batches = with_log_probabilities(engine.scheduled, world, batches)
    endless, a_step = itertools.cycle(batches), A_STEP // IN_A_ROW
    losses = [engine.step(list(itertools.islice(endless, a_step))).loss for _ in range(config.train.steps)]
    engine.close()
    return weights, losses


def batches_of(case: Case) -> list[Batch]:
    """Microbatches of one row with several examples each, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        write_examples(groups_of(case), Path(folder) / "examples", {})
        source = ExampleRows(ExampleSet(Path(folder) / "examples"), ROW, "0", 0, packing=True)
        rows = [source.row(range(start, start + IN_A_ROW)) for start in range(0, EXAMPLES, IN_A_ROW)]
    return [batch_of(shortened([row], LENGTH_UNIT)) for row in rows]


def groups_of(case: Case) -> Iterator[Example]:
    """The examples as the engine's data has them: documents side by side."""
    examples = case.examples
    for place, example in enumerate(examples):
        if isinstance(example, Judged):
            # TRL puts the answer before to each prompt, and to the first one of a microbatch its last one.
            start = place - place % A_STEP
            other = examples[start + (place - start - 1) % A_STEP]
            assert isinstance(other, Judged)
            yield group_of(example.prompt, [example.answer, other.answer], target=float(example.is_good))
        else:
            yield group_of_pair(example, is_reward=case.config.task == "reward")


@pytest.mark.parametrize("name", CASES)
def test_losses(tmp_path: Path, name: str) -> None:
    compare(CASES[name], all_of_ours(is_rare=False)[name], tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("name", RARE)
def test_losses_of_rarer_settings(tmp_path: Path, name: str) -> None:
    compare(RARE[name], all_of_ours(is_rare=True)[name], tmp_path)


def compare(case: Case, ours: Trained, folder: Path) -> None:
    single_threaded()
    weights, losses = ours
    theirs = losses_of_trl(case.config, case.theirs, case.examples, A_STEP, weights, folder)
    assert len(losses) == len(theirs) == 20
    apart = [abs(a - b) / max(1.0, abs(b)) for a, b in zip(losses, theirs)]
    assert sum(losses[-A_PASS:]) < 0.98 * sum(losses[:A_PASS]), "something is learned"
    assert max(apart) <= AGREEMENT, (losses, theirs)
