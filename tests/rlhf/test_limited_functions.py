"""Functions that hang, crash, eat memory, fork, flood and lie: found, named, killed; the next call works."""

import os
import resource
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llmscale.config.rlhf_rewards import WorkerSection
from llmscale.rlhf.rewards.function import FunctionReward
from llmscale.rlhf.rewards.limited import FORK_ROOM, BadFunction, LimitedProcess, WorkerFailed, _user_tasks
from tests.rlhf.left_processes import nothing_left
from tests.rlhf.reward_samples import sample, samples

FUNCTIONS = "tests.rlhf.hostile_functions"
LIMITS = WorkerSection(
    timeout_seconds=10, cpu_seconds=1, memory_mib=400, file_mib=8, open_files=32, processes=8
)
IMPATIENT = LIMITS.model_copy(update={"timeout_seconds": 1.5})


@pytest.fixture(scope="module")
def reward() -> Iterator[FunctionReward]:
    opened = FunctionReward(f"{FUNCTIONS}:obedient", LIMITS)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ("raise", "KeyError: 'no such thing'"),
        ("exit", "SystemExit: 0"),
        ("vanish", "ended the process with exit code 0"),
        ("crash", "SIGSEGV); its stderr ends so: these are my last words"),
        ("spin", "used more than 1 seconds of processor time"),
        ("eat", "MemoryError"),
        ("eat together", "MiB in"),
        ("fork bomb", "processes, of which 8 are allowed"),
        ("fill disk", "File too large"),
        ("open many", "Too many open files"),
        ("scribble", "answered with something that is none"),
        ("ask", "EOFError"),
        ("too few", "returned 0 numbers for 1 completions"),
        ("nothing", "returned NoneType and not a list of 1 numbers"),
        ("generator", "returned generator and not a list"),
        ("text", "'1.0', which is no number"),
        ("not a number", "returned nan"),
        ("infinite", "returned inf"),
        ("none", "None, which is no number"),
        ("huge", "too large"),
    ],
)
def test_what_goes_wrong_is_named_and_the_next_call_works(
    reward: FunctionReward, order: str, words: str
) -> None:
    [found] = reward.score([sample(order, line=17)])
    assert found.value is None
    assert found.error is not None
    assert found.error.startswith("prompts.jsonl, line 17: ")
    assert words in found.error
    assert [one.value for one in reward.score(samples("well", "done"))] == [1.0, 1.0]


def test_a_hanging_function_is_killed_in_time() -> None:
    with nothing_left():
        reward = FunctionReward(f"{FUNCTIONS}:obedient", IMPATIENT)
        begin = time.monotonic()
        [found] = reward.score([sample("hang")])
        assert time.monotonic() - begin < 8
        assert found.error is not None
        assert (
            "took longer than 1.5 seconds and was killed; its stderr ends so: going to sleep" in found.error
        )
        assert reward.score([sample("well")])[0].value == 1.0
        reward.close()


def test_one_bad_answer_does_not_cost_the_others_theirs(reward: FunctionReward) -> None:
    found = reward.score(samples("a", "b", "crash", "c", "d"))
    assert [one.value for one in found] == [1.0, 1.0, None, 1.0, 1.0]
    assert found[2].error is not None
    assert found[2].error.startswith("prompts.jsonl, line 3: ")


def test_a_function_that_always_fails_is_not_asked_for_ever() -> None:
    process = LimitedProcess(f"{FUNCTIONS}:obedient", "reward", LIMITS)
    reward = FunctionReward(f"{FUNCTIONS}:obedient", LIMITS)
    reward._workers = [process]
    found = reward.score(samples(*["vanish"] * 40))
    assert [one.value for one in found] == [None] * 40
    assert process.starts == 4
    assert "not tried, after 3 failures in a row" in (found[-1].error or "")
    reward.close()


def test_much_output_is_no_fault_and_is_not_kept(reward: FunctionReward) -> None:
    assert [one.value for one in reward.score(samples("talk", "b"))] == [0.5, 0.5]
    assert len(reward._workers[0]._stderr) <= 4000


def test_booleans_are_numbers_and_children_are_allowed(reward: FunctionReward) -> None:
    assert [one.value for one in reward.score(samples("true"))] == [1.0]
    assert [one.value for one in reward.score(samples("child"))] == [1.0]


def test_daemons_in_sessions_of_their_own_end_with_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARKS", str(tmp_path))
    reward = FunctionReward(f"{FUNCTIONS}:obedient", LIMITS.model_copy(update={"environment": ["MARKS"]}))
    assert [one.value for one in reward.score(samples("daemon"))] == [0.0]
    [mark] = tmp_path.iterdir()
    assert psutil.pid_exists(int(mark.name))
    reward.close()
    assert not psutil.pid_exists(int(mark.name)) or psutil.Process(int(mark.name)).status() == "zombie"


def test_the_environment_is_reduced_and_the_folder_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    process = LimitedProcess("os:getenv", "plain", LIMITS)
    assert process.call({"key": "SECRET"}) is None
    assert process.call({"key": "TMPDIR"}) == str(process._folder)
    process.close()
    process = LimitedProcess("os:getcwd", "plain", LIMITS)
    folder = process.call({})
    assert folder == str(process._folder)
    process.close()
    assert not Path(folder).exists()


def test_workers_share_the_batch_and_keep_its_order() -> None:
    reward = FunctionReward(f"{FUNCTIONS}:length", LIMITS.model_copy(update={"count": 2}))
    found = reward.score(samples(*("x" * count for count in range(7))))
    assert [one.value for one in found] == [0, 1, 2, 3, 4, 5, 6]
    assert [worker.starts for worker in reward._workers] == [1, 1]
    reward.close()


def test_a_function_gets_the_fields_of_the_records() -> None:
    reward = FunctionReward(f"{FUNCTIONS}:doubled", LIMITS)
    told = [sample("ab", factor=3, other="x"), sample("abc", factor=2)]
    assert [one.value for one in reward.score(told)] == [6, 6]
    [found] = reward.score([sample("ab")])
    assert "needs factor, which the records have no field for" in (found.error or "")
    reward.close()
    reward = FunctionReward(f"{FUNCTIONS}:seen", LIMITS)
    [found] = reward.score([sample("ab", prompts="mine", level=2)])
    assert found.error is not None  # it returns what it has seen, which is no number
    wanted = [("finished", [True]), ("level", [2]), ("tokens", [[8, 9]])]
    assert repr((["q"], ["ab"], wanted))[:60] in found.error.replace('"', "")
    reward.close()


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("no.such.module:f", "ModuleNotFoundError"),
        (f"{FUNCTIONS}:nobody", "has no nobody"),
        (f"{FUNCTIONS}:not_a_function", "is no function"),
        (f"{FUNCTIONS}:later", "is no function that can be called and returns a value"),
        (f"{FUNCTIONS}:positional", "is called by name, with prompts and completions"),
        (f"{FUNCTIONS}:other_arguments", "takes (text: str) -> float"),
    ],
)
def test_a_function_that_cannot_be_used(function: str, words: str) -> None:
    process = LimitedProcess(function, "reward", LIMITS)
    with nothing_left(), pytest.raises(BadFunction) as caught:
        process.start()
    assert words in str(caught.value)


def test_a_module_that_hangs_when_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sleepy.py").write_text("import time\nprint('yawn')\ntime.sleep(1000)\n")
    monkeypatch.syspath_prepend(tmp_path)
    process = LimitedProcess("sleepy:f", "reward", LIMITS.model_copy(update={"start_seconds": 0.5}))
    slow = "importing its module took longer than 0.5 seconds.*yawn"
    with nothing_left(), pytest.raises(WorkerFailed, match=slow):
        process.start()


@pytest.mark.parametrize("is_calling", [True, False])
def test_a_worker_ends_when_nobody_is_left_to_answer(is_calling: bool) -> None:
    script = textwrap.dedent("""
        import os, threading, time
        from llmscale.config.rlhf_rewards import WorkerSection
        from llmscale.rlhf.rewards.limited import LimitedProcess
        process = LimitedProcess("tests.rlhf.hostile_functions:obedient", "reward", WorkerSection())
        process.start()
        if CALLING:
            threading.Thread(target=lambda: process.call(HANG), daemon=True).start()
            time.sleep(0.5)
        print(process._process.pid, process._folder, flush=True)
        time.sleep(1000)
    """)
    hang = {"prompts": ["q"], "completions": ["hang"]}
    script = script.replace("CALLING", str(is_calling)).replace("HANG", repr(hang))
    owner = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert owner.stdout is not None
    pid, folder = owner.stdout.readline().split()
    worker = psutil.Process(int(pid))
    assert worker.is_running()
    assert Path(folder).is_dir()
    owner.kill()
    owner.wait()
    worker.wait(10)
    assert not Path(folder).exists()


def test_where_the_kernel_limits_a_users_tasks_a_worker_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 65534)
    room = _user_tasks()
    assert room is not None
    assert room >= FORK_ROOM
    process = LimitedProcess("resource:getrlimit", "plain", LIMITS)
    with pytest.raises(WorkerFailed, match="takes no keyword arguments"):  # and the process is there
        process.call({"resource": resource.RLIMIT_NPROC})
    process.close()
