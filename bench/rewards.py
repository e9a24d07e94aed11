"""What rewards cost beside a step of training: medians over several batches, on one core.

python -m bench.rewards
"""

import statistics
import time
from collections.abc import Callable

from llmscale.config.rlhf_rewards import RewardTerm, WorkerSection
from llmscale.rlhf.rewards.limited import LimitedProcess
from llmscale.rlhf.rewards.reward import Sample
from llmscale.rlhf.rewards.weighted import Rewards

ANSWERS = 256
TESTED = 32
PROGRAM = """\
def total_{0}(a, b):
    total = 0
    for x in a:
        if x > b:
            total += x * {0}
        else:
            total -= abs(x)
    return total
"""
SOLUTION = "We take 3 and 4 and get 7, so that 7 * 2 = 14. " * 6 + "\n#### 14"


def lengths(prompts: list[str], completions: list[str]) -> list[int]:
    """A reward function."""
    return [len(completion) for completion in completions]


def main() -> None:
    words = [sample("word " * 40, number) for number in range(ANSWERS)]
    programs = [sample(PROGRAM.format(number), number) for number in range(ANSWERS)]
    solutions = [sample(SOLUTION, number) for number in range(ANSWERS)]
    function = RewardTerm(kind="function", function="bench.rewards:lengths")
    python = RewardTerm(kind="python")
    tell("starting and ending a subprocess", milliseconds(start_and_end))
    tell("function, 1 answer", score(function, words[:1]))
    tell(f"function, {ANSWERS} answers", score(function, words))
    tell(f"math, {ANSWERS} answers", score(RewardTerm(kind="math"), solutions))
    tell(f"python, {ANSWERS} answers", score(python, programs))
    for count in (1, 2):
        tested = RewardTerm(kind="python", tests="tests", worker=WorkerSection(count=count))
        cost = score(tested, programs[:TESTED], times=5) / TESTED
        tell(f"python, 1 answer with tests, worker.count {count}", cost)


def sample(completion: str, number: int) -> Sample:
    fields = {"answer": "#### 14", "tests": f"assert total_{number}([3, 1], 2) == 3 * {number} - 1"}
    return Sample(f"What is {number}?", completion, (1, 2), 1, True, f"line {number}", fields)


def score(term: RewardTerm, samples: list[Sample], times: int = 20) -> float:
    """Milliseconds of a batch, after one that starts the subprocess."""
    with Rewards([term]) as rewards:
        values = {one.value for one in rewards.score(samples)}
        assert None not in values and 0.0 not in values, values
        return milliseconds(lambda: rewards.score(samples), times)


def start_and_end() -> None:
    process = LimitedProcess("os:getcwd", "plain", WorkerSection())
    process.start()
    process.close()


def milliseconds(function: Callable[[], object], times: int = 20) -> float:
    found: list[float] = []
    for _ in range(times):
        begin = time.perf_counter()
        function()
        found.append(time.perf_counter() - begin)
    return 1000 * statistics.median(found)


def tell(what: str, found: float) -> None:
    print(f"{what:50} {found:8.1f} ms", flush=True)


if __name__ == "__main__":
    main()
