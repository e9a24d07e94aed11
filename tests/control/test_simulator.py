"""Seeded schedules of faults over the control plane's state machines; and mistakes that must be found."""

import pytest

from tests.control.planted_mistakes import MISTAKES
from tests.control.simulator import Violation, simulate, simulate_many

SCHEDULES = 2_000


def test_every_schedule_keeps_the_invariants() -> None:
    codes = simulate_many(range(SCHEDULES))
    assert sum(codes.values()) == SCHEDULES
    assert codes[0] > 0.7 * SCHEDULES and codes[3] > 0.01 * SCHEDULES


@pytest.mark.soak
@pytest.mark.parametrize("start", range(0, 100_000, 10_000))
def test_a_hundred_thousand_schedules(start: int) -> None:
    simulate_many(range(start, start + 10_000))


def test_a_schedule_is_the_same_every_time() -> None:
    assert [simulate(seed) for seed in range(50)] == [simulate(seed) for seed in range(50)]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_found(mistake: str) -> None:
    with pytest.raises(Violation):
        for seed in range(SCHEDULES):
            simulate(seed, MISTAKES[mistake])
