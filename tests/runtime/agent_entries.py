"""What the ranks of the agent's tests do. Each takes the run folder; steps are marked by files."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from llmscale.control.exit_codes import EXIT_SAVED
from llmscale.parallel.environment import RankEnvironment
from llmscale.runtime import stop_signal
from llmscale.runtime.final import FinalFailure

STEPS = 20
STEP_SECONDS = 0.02


def commit(run_folder: Path, step: int) -> None:
    (run_folder / "committed").write_text(str(step))


def committed_step(run_folder: Path) -> int | None:
    path = run_folder / "committed"
    return int(path.read_text()) if path.exists() else None


def finish(run_folder: Path) -> int:
    """Every rank notes its place in the world, and is done."""
    environment = RankEnvironment.from_variables()
    (run_folder / f"rank-{environment.rank}.json").write_text(json.dumps(vars(environment)))
    return 0


def train(run_folder: Path) -> int:
    """Steps until done or asked to stop; rank 0 commits every fifth."""
    environment = RankEnvironment.from_variables()
    for step in range((committed_step(run_folder) or 0) + 1, STEPS + 1):
        time.sleep(STEP_SECONDS)
        if environment.rank == 0:
            with (run_folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step}) + "\n")
        stop = stop_signal.requested()
        if environment.rank == 0 and (step % 5 == 0 or stop):
            commit(run_folder, step)
        if stop:
            return EXIT_SAVED
    return 0


def train_slowly(run_folder: Path) -> int:
    """Like `train`, but never done by itself."""
    while not stop_signal.requested():
        (run_folder / f"alive-{os.environ['RANK']}").write_text(str(os.getpid()))
        time.sleep(STEP_SECONDS)
    commit(run_folder, 7)
    return EXIT_SAVED


def ignore_signals(run_folder: Path) -> int:
    (run_folder / f"alive-{os.environ['RANK']}").write_text(str(os.getpid()))
    time.sleep(600)
    return 0


def kill_once(run_folder: Path) -> int:
    """A seeded rank kills itself at a seeded step of the first start; the others would wait for ever."""
    environment = RankEnvironment.from_variables()
    plan = random.Random(int((run_folder / "seed").read_text()))
    victim, step, how = plan.randrange(environment.world_size), plan.randrange(1, 10), plan.choice(FATES)
    if environment.restart_count:
        return 0
    if environment.rank != victim:
        time.sleep(600)
    (run_folder / "victim").write_text(json.dumps({"rank": victim, "how": how}))
    time.sleep(step * STEP_SECONDS)
    print("about to go", flush=True)
    (run_folder / "died").write_text(repr(time.time()))
    if how == "exit 0":
        sys.exit(0)
    if how == "_exit 0":
        os._exit(0)
    os.kill(os.getpid(), getattr(signal, how))
    return 1


FATES = ("SIGKILL", "SIGSEGV", "SIGABRT", "exit 0", "_exit 0")


def crash(run_folder: Path) -> int:
    """The same error at every start, on rank 1; rank 0 then loses its connection."""
    with (run_folder / "starts").open("a") as file:
        file.write(os.environ["RANK"])
    if os.environ["RANK"] == "0":
        time.sleep(0.3)
        raise ConnectionError("connection closed by peer")
    raise ValueError("no such token: 9000")


def crash_after_progress(run_folder: Path) -> int:
    """Crashes at every start, but commits a step first, until step 6."""
    step = (committed_step(run_folder) or 0) + 1
    commit(run_folder, step)
    if step < 6:
        raise RuntimeError(f"crash after step {step}")
    return 0


def refuse(run_folder: Path) -> int:
    return 2 if os.environ["RANK"] == "1" else train_slowly(run_folder)


def die_on_first_start(run_folder: Path) -> int:
    """Rank 3 dies once; the others end when all four have met again."""
    rank = os.environ["RANK"]
    first = not (run_folder / "died").exists()
    if first and rank == "3":
        (run_folder / "died").write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    if first:
        time.sleep(600)
    (run_folder / f"again-{rank}").write_text("")
    while len(list(run_folder.glob("again-*"))) < 4:
        time.sleep(0.02)
    return 0


def give_up(run_folder: Path) -> int:
    raise FinalFailure("the loss is nan")
