"""The best loss so far, and when there is no use in waiting for a better one."""

import json
import math

import pytest

from llmscale.config.tuning import EarlyStopping
from llmscale.train.best import Best, best_step


def after(losses: list[float], min_delta: float = 0.0) -> Best:
    """Validated at steps 0, 10, 20, …; written to a checkpoint and read again between any two."""
    best = Best()
    for number, loss in enumerate(losses):
        best.add(10 * number, loss, min_delta)
        best = Best.of(json.loads(json.dumps(best.as_progress())))
    return best


@pytest.mark.parametrize(
    ("losses", "min_delta", "step", "waited"),
    [
        ([3.0, 2.0, 1.0], 0.0, 20, 0),
        ([3.0, 2.0, 2.0, 2.5], 0.0, 10, 2),
        ([3.0, 2.95, 2.92, 2.85], 0.1, 30, 0),
        ([3.0, 2.95, 2.91], 0.1, 20, 2),
        ([math.nan, math.inf, 5.0, 6.0], 0.0, 20, 1),
        ([2.0, math.nan, math.nan], 0.0, 0, 2),
    ],
)
def test_best_and_waiting(losses: list[float], min_delta: float, step: int, waited: int) -> None:
    """Small gains count for what is best, and not for going on: three of 0.05 do, of 0.1 at least."""
    best = after(losses, min_delta)
    assert (best.step, best.waited) == (step, waited)
    assert best.loss == min(loss for loss in losses if math.isfinite(loss))
    assert best.validated_step == 10 * (len(losses) - 1)
    assert best_step(best.as_progress()) == step


def test_a_lower_loss_is_told_from_an_equal_one() -> None:
    best = Best()
    assert [best.add(step, loss) for step, loss in enumerate([3.0, 3.0, 2.0, 2.5])] == [
        True,
        False,
        True,
        False,
    ]


def test_stopping_takes_patience() -> None:
    options = EarlyStopping(patience=2)
    assert after([3.0, 3.1]).reason_to_stop(options) is None
    assert after([3.0, 3.1, 3.2]).reason_to_stop(None) is None
    reason = after([3.0, 3.1, 3.2]).reason_to_stop(options)
    assert reason == "2 validations in a row brought no better loss than 3.0000 at step 0"
    assert after([math.nan, math.nan]).reason_to_stop(options)


def test_a_checkpoint_from_before_there_was_a_best() -> None:
    assert Best.of({"step": 3}) == Best()
    assert best_step({}) is None
