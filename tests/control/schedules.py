"""What goes wrong in a simulated run, and when: a function of one number."""

from dataclasses import dataclass, field
from random import Random

FAULT_SECONDS = 120.0
"""In which faults come; after that all is well, so that every run can end."""


@dataclass
class Plan:
    """One schedule: how large the run is, how bad the network, and what goes wrong when."""

    seed: int
    nodes: int
    min_nodes: int
    steps: int
    max_restarts: int
    max_requeues: int
    loss: float
    double: float
    delay: float
    crash_step: int | None
    crash_code: int | None
    save_fails: float
    slow_save: float
    hangs: bool
    respawn: bool
    locks: bool
    """Whether the lock of the run folder holds between machines."""
    faults: list[tuple[float, str, int, float]] = field(default_factory=list)
    """(when, what, which node, for how long)."""


FAULTS = (
    "rank dies",
    "rank hangs",
    "agent dies",
    "node cut",
    "node cut",
    "node cut",
    "node dies",
    "preempt",
    "requeue",
)


def make_plan(seed: int) -> Plan:
    chance = Random(seed)
    nodes = chance.choice((1, 2, 2, 3))
    deterministic = chance.random() < 0.1
    weather = chance.choice((0.0, 0.0, 0.05, 0.25))
    hangs = chance.random() < 0.25
    plan = Plan(
        seed=seed,
        nodes=nodes,
        min_nodes=chance.randint(1, nodes),
        steps=chance.choice((3, 6, 9)),
        max_restarts=chance.choice((1, 3, 3)),
        max_requeues=chance.choice((2, 20, 20)),
        loss=weather,
        double=weather,
        delay=chance.choice((0.02, 0.5, 3.0)) if weather else 0.02,
        crash_step=chance.randint(1, 3) if deterministic else None,
        crash_code=chance.choice((None, None, 2)) if deterministic else None,
        save_fails=chance.choice((0.0, 0.0, 0.2)),
        slow_save=chance.choice((0.0, 0.0, 0.3)),
        hangs=hangs,
        respawn=chance.random() < 0.3,
        locks=chance.random() < 0.5,
    )
    kinds = FAULTS if hangs else tuple(kind for kind in FAULTS if kind != "rank hangs")
    for _ in range(chance.choice((0, 1, 1, 2, 4))):
        when = chance.uniform(0, chance.choice((20, 60, FAULT_SECONDS)))
        seconds = chance.choice((3, 9, 20, 60))
        plan.faults.append((when, chance.choice(kinds), chance.randrange(nodes), seconds))
    return plan
