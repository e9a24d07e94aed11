"""Whose fault a hang is, from evidence alone."""

import pytest

from llmscale.control.culprit import FRAME, find_culprit, suspects
from llmscale.control.messages import Evidence

C10D = "/lib/torch/distributed/distributed_c10d.py"


def frame(file: str, line: int, function: str, text: str = "") -> str:
    return FRAME.format(file=file, line=line, function=function, text=text)


def collective(name: str, caller_line: int) -> tuple[str, ...]:
    return (
        frame(C10D, 2800, name, "work.wait()"),
        frame("/lib/torch/distributed/c10d_logger.py", 83, "wrapper", "return func(*args, **kwargs)"),
        frame("/code/engine.py", caller_line, "step", f"distributed.{name}(total)"),
        frame("/code/loop.py", 70, "run", "self._step()"),
    )


GRADIENTS, AGREEMENT = collective("all_reduce", 165), collective("all_reduce", 20)
LOADING = (
    frame("/code/loader.py", 72, "step_batches", "return self._ahead.pop(wanted).result()"),
    *GRADIENTS[2:],
)
PENDING = (frame("/lib/deepspeed/zero.py", 900, "average", "handle.wait()"), *GRADIENTS[2:])


def found(rank: int, stack: tuple[str, ...] = GRADIENTS, state: str = "S", step: int = 7) -> Evidence:
    return Evidence(rank, f"host{rank // 2}", 100 + rank, state, stack, step)


@pytest.mark.parametrize(
    ("evidence", "rank", "reason"),
    [
        ([found(0), found(1), found(2, (), "T"), found(3)], 2, "is stopped by a signal"),
        ([found(0), found(1, (), "Z"), found(2, LOADING)], 1, "has ended"),
        ([found(0), found(1), found(2, LOADING)], 2, "is in step_batches (/code/loader.py:72)"),
        ([found(0), found(1, (), "D"), found(2)], 1, "waits for a disk"),
        ([found(0), found(1, (), "R"), found(2)], 1, "is busy and does not answer"),
        ([found(0), found(1), found(2, AGREEMENT), found(3)], 2, "called at /code/engine.py:20, the others"),
        ([found(0, PENDING), found(1, PENDING), found(2)], 2, "waits in all_reduce"),
        ([found(0, step=8), found(1, step=7), found(2, step=8)], 1, "is at step 7, others at 8"),
        ([found(0), found(1)], 0, "nothing tells them apart"),
    ],
)  # fmt: skip
def test_the_rank_to_blame(evidence: list[Evidence], rank: int, reason: str) -> None:
    culprit, why = find_culprit(evidence)
    assert culprit.rank == rank and reason in why


def test_the_others_place_is_named_too() -> None:
    _, why = find_culprit([found(0), found(1, AGREEMENT), found(2)])
    assert why.endswith("the others in all_reduce called at /code/engine.py:165")


def test_of_two_in_different_collectives_both_are_suspect() -> None:
    assert [one.rank for one, _ in suspects([found(0), found(1, AGREEMENT)])] == [0, 1]


def test_ranks_that_all_do_something_else_are_told_apart_by_their_steps() -> None:
    evidence = [found(0, LOADING, step=3), found(1, LOADING, step=2)]
    assert find_culprit(evidence)[0].rank == 1
