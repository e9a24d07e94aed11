"""The demo's reinforcement learning as far as it needs no ranks: its prompts, its reward, what it tells."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from llmscale.config.load import load_config
from llmscale.config.rlhf_rewards import RewardTerm
from llmscale.rlhf.rewards.constant import CONSTANTS, constant_answers
from llmscale.rlhf.rewards.python_code import PythonReward
from llmscale.run import demo_rlhf
from llmscale.run.demo_prompts import LONGEST_HEAD, write_prompts
from tests.rlhf.reward_samples import sample

PPO = Path("configs/rlhf/tiny_ppo.yaml")
MORE_CONSTANTS = (" text.upper()", " text.upper()  # 1", " text", " None", " text, text", "\n    print(1)")


def test_prompts_are_in_one_split_and_can_be_gone_on_with(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.py" for number in range(60)]
    for number, file in enumerate(files):
        long = f"argument_{'x' * LONGEST_HEAD}" if number % 10 == 0 else "text"
        file.write_text(f'def function_{number % 50}({long}):\n    """Gives the number {number % 50}."""\n')
    counts = write_prompts(files, tmp_path / "prompts")
    found: dict[str, list[str]] = {}
    for split, count in counts.items():
        lines = (tmp_path / "prompts" / f"{split}.jsonl").read_text().splitlines()
        found[split] = [json.loads(line)["prompt"] for line in lines]
        assert len(lines) == count == len({*found[split]}) > 0
    assert {*found["train"]}.isdisjoint(found["validation"])
    assert len([*found["train"], *found["validation"]]) == 45
    for prompt in found["train"]:
        compile(f"{prompt} text.upper()", "<prompt>", "exec")


@pytest.mark.parametrize("config", [demo_rlhf.GRPO, PPO])
def test_no_constant_answer_is_rewarded(repository: Path, config: Path) -> None:
    [term] = load_config(repository / config).rlhf.rewards
    assert isinstance(term, RewardTerm)
    reward = PythonReward(term)
    asked = [f"def function_{number}(text):\n    return" for number in range(4)]
    prompts = [sample("", prompt) for prompt in asked]
    different = [sample(f" text.upper({number})", prompt) for number, prompt in enumerate(asked)]
    try:
        found = constant_answers(reward.score, prompts, None, (*CONSTANTS, *MORE_CONSTANTS))
        scored = [one.value for one in reward.score(different)]
    finally:
        reward.close()
    assert {one.completion: one.mean for one in found} == dict.fromkeys((*CONSTANTS, *MORE_CONSTANTS), 0.0)
    assert scored == [1.0] * len(prompts)


@pytest.mark.parametrize("minutes", [0.01, 2.0, 60.0])
def test_every_pace_is_a_valid_config(repository: Path, minutes: float) -> None:
    steps = demo_rlhf.steps_for(minutes)
    overrides = demo_rlhf.overrides(Path("demo/runs/one-tiny"), Path("demo/runs/one-tiny_grpo"), steps)
    loaded = load_config(repository / demo_rlhf.GRPO, overrides)
    assert loaded.train.steps == steps
    assert loaded.train.init_from == Path("demo/runs/one-tiny")
    assert loaded.run_folder == Path("demo/runs/one-tiny_grpo")
    assert demo_rlhf.FEWEST_STEPS <= steps <= demo_rlhf.MOST_STEPS
    assert sum(pool.processes for pool in loaded.rlhf.pools.values()) == 2


def test_what_is_told_of_a_run(tmp_path: Path) -> None:
    prompt = "def peek(self):\n    return"
    answers = {0: (0.05, " self.[", 0.0), 4: (0.5, " [self]", 0.0), 8: (0.875, " self.first", 1.0)}
    lines = [
        {"event": "validated", "time": 0.0, "step": step, "reward": mean}
        | {"samples": [{"prompt": prompt, "text": text, "reward": reward}]}
        for step, (mean, text, reward) in answers.items()
    ]
    (tmp_path / "events.jsonl").write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(demo_rlhf.DemoFailed, match="1 validations"):
        demo_rlhf.outcome(tmp_path)
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    reinforced = demo_rlhf.outcome(tmp_path)
    assert "5% → 88%" in demo_rlhf.told(reinforced)
    console = Console(width=100, record=True)
    console.print(demo_rlhf.table(reinforced))
    shown = console.export_text()
    assert "return self.[" in shown
    assert "return self.first" in shown
