"""Processes of a run of reinforcement learning die or hang, on a real Ray: what was lost is named, and the
run ends as if nothing had happened."""

import json
from collections.abc import Sequence

import pytest

from llmscale.runtime.metrics import read_metrics
from tests.distributed.trainings import Place, Run, assert_same_tensors
from tests.rlhf.left_processes import assert_gone
from tests.rlhf.role_kills import DRIVER, Blow, kill_child, pid_of, plan, stop, striking
from tests.rlhf.word_runs import make_place, overrides, told

pytestmark = pytest.mark.cluster

STEPS = 5
POOLS = {"train": 2, "critic": 1, "helpers": 1, "writers": 1}
LEARNING = ("train", "critic")
SECTIONS = (
    "rlhf.pools={train: {roles: [actor], processes: 2}, critic: {roles: [critic]}, "
    "helpers: {roles: [reference]}, writers: {roles: [rollout]}}",
    "rlhf.rollout.engine=transformers",
    "rlhf.update.minibatches=2",
    f"train.steps={STEPS}",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def oracle(place: Place) -> Run:
    """The run that nothing disturbs."""
    return place.uninterrupted("oracle", *overrides(place, *SECTIONS))


def assert_same(run: Run, oracle: Run) -> None:
    """Each step stands once and equals the oracle's, and so do the models."""
    assert [line["step"] for line in read_metrics(run.folder)] == list(range(1, STEPS + 1))
    assert told(run) == told(oracle)
    for folder in (".", "critic"):
        assert_same_tensors(Run(run.folder / folder).tensors(), Run(oracle.folder / folder).tensors())


def assert_told(run: Run, blows: Sequence[Blow]) -> None:
    """Who died is named; only what is in no file is fetched from the last transaction."""
    lost = [(event.details["pool"], event.details["rank"]) for event in run.events("worker_lost")]
    assert lost == [(blow.pool, blow.rank) for blow in blows if blow.pool != DRIVER]
    restarted = [event.details["pool"] for event in run.events("pool_restarted")]
    assert restarted == [blow.pool for blow in blows if blow.pool not in (*LEARNING, DRIVER)]
    causes = [event.details["cause"] for event in run.events("failed")]
    expected = [blow.pool for blow in blows if blow.pool in (*LEARNING, DRIVER)]
    assert len(causes) == len(expected), causes
    for cause, pool in zip(causes, expected):
        assert "SIGKILL" in cause if pool == DRIVER else f"(pool {pool}), rank" in cause


def processes(run: Run) -> list[int]:
    """Driver and workers that it had at last."""
    pids = [pid_of(run, DRIVER, 0)]
    pids += [pid_of(run, pool, rank) for pool, processes in POOLS.items() for rank in range(processes)]
    return [pid for pid in pids if pid is not None]


def survive(place: Place, oracle: Run, name: str, *blows: Blow, more: Sequence[str] = ()) -> Run:
    """A run that is struck, and equals the one that is not."""
    run = place.run(name)
    with striking(run, *blows):
        assert place.train(name, *overrides(place, *SECTIONS, *more)) == 0, run.rank_logs()
    assert_same(run, oracle)
    assert_gone(processes(run))
    return run


def test_what_is_in_files_is_started_again_in_its_place(place: Place, oracle: Run) -> None:
    blows = (
        Blow("helpers", 0, 0, "learning"),
        Blow("writers", 0, 1, "rollout"),
        Blow("helpers", 0, 2, "rewards", how=stop),
    )
    run = survive(place, oracle, "helpers", *blows, more=["rlhf.call_seconds=30"])
    assert_told(run, blows)
    causes = [event.details["cause"] for event in run.events("worker_lost")]
    assert "has ended during" in causes[0] and "has ended during" in causes[1]
    assert "is not done after 30 s" in causes[2] and "is stopped by a signal" in causes[2]


def test_what_learns_goes_on_from_the_last_transaction(place: Place, oracle: Run) -> None:
    blows = (
        Blow("critic", 0, 0, "knowing"),
        Blow("train", 1, 1, "learning"),
        Blow(DRIVER, 0, 2, "saving"),
    )
    assert_told(survive(place, oracle, "learning", *blows), blows)


@pytest.mark.soak
def test_a_ray_that_dies_is_told_and_another_one_begun(place: Place, oracle: Run) -> None:
    blows = (
        Blow(DRIVER, 0, 0, "rollout", how=kill_child("gcs_server")),
        Blow(DRIVER, 0, 2, "learning", how=kill_child("raylet")),
    )
    run = survive(place, oracle, "no-ray", *blows)
    causes = [event.details["cause"] for event in run.events("failed")]
    assert len(causes) == 2 and "the Ray of this run is gone" in causes[0]


@pytest.mark.soak
def test_answers_written_ahead_are_neither_lost_nor_learned_twice(place: Place) -> None:
    blows = (
        Blow("writers", 0, 0, "learning"),
        Blow(DRIVER, 0, 1, "learning"),
        Blow("helpers", 0, 2, "rollout"),
    )
    run, more = place.run("ahead"), overrides(place, *SECTIONS, "rlhf.async_steps=1")
    with striking(run, *blows):
        assert place.train("ahead", *more) == 0, run.rank_logs()
    lines = read_metrics(run.folder)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    # Each step has learned from the four prompts after those of the step before.
    assert [line["samples"] for line in lines] == [4 * step for step in range(1, STEPS + 1)]
    assert all(line["staleness"] in (0.0, 1.0) for line in lines)
    assert_told(run, blows)
    assert_gone(processes(run))


@pytest.mark.parametrize("on_error", [pytest.param("drop", marks=pytest.mark.soak), "stop"])
def test_a_reward_that_hangs_ends_as_its_config_says(place: Place, on_error: str) -> None:
    prompts = place.folder / f"{on_error}.jsonl"
    records = [json.loads(line) for line in (place.folder / "prompts.jsonl").read_text().splitlines()]
    lines = [json.dumps({**one, "hangs": number % 3 == 0}) for number, one in enumerate(records)]
    prompts.write_text("\n".join(lines))
    reward = (
        "rlhf.rewards=[{kind: function, function: 'tests.rlhf.rewarding:hangs_at_some', "
        f"on_error: {on_error}, max_error_share: 1.0, worker: {{timeout_seconds: 3}}}}]"
    )
    more = ("rlhf.algorithm=grpo", "rlhf.kl=0", f"data.train=[{prompts}]", reward)
    code, run = place.train(on_error, *overrides(place, *more)), place.run(on_error)
    if on_error == "drop":
        shares = [line["unrewarded_share"] for line in read_metrics(run.folder)]
        assert code == 0 and len(shares) == 3 and max(shares) > 0 and min(shares) < 1
    else:
        (failed,) = run.events("failed")
        assert code == 1 and "of 8 answers (on_error=stop)" in failed.details["cause"]
        assert "took longer than 3 seconds and was killed" in failed.details["cause"]
        assert not run.events("restarted")


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_a_process_of_any_role_dies_anywhere(place: Place, oracle: Run, seed: int) -> None:
    blow = plan(seed, POOLS, STEPS)
    assert_told(survive(place, oracle, f"killed-{seed}", blow), [blow])
