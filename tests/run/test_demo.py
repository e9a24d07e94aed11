"""The parts of the demo that need no ranks; `.ci/run` runs the whole of it."""

import json
from pathlib import Path

import pytest

from llmscale.config.load import load_config
from llmscale.run import demo


@pytest.mark.parametrize("steps", [demo.FEWEST_STEPS, 57, demo.MOST_STEPS])
def test_every_pace_is_a_valid_config(repository: Path, steps: int) -> None:
    config = load_config(repository / demo.CONFIG, demo.Pace(steps, 1.0).overrides)
    assert config.train.steps == steps
    assert config.tokenizer.path == demo.TOKENIZER
    assert [entry.path for entry in config.data.train] == [demo.CORPUS]


def test_a_lost_or_doubled_step_is_noticed(tmp_path: Path) -> None:
    def write(steps: list[int]) -> None:
        lines = [json.dumps({"step": step}) + "\n" for step in steps]
        (tmp_path / "metrics.jsonl").write_text("".join(lines))

    write([1, 2, 3])
    demo.check_steps(tmp_path, 3)
    for wrong in ([1, 2], [1, 3], [1, 2, 2, 3]):
        write(wrong)
        with pytest.raises(demo.DemoFailed, match="not 1 to 3"):
            demo.check_steps(tmp_path, 3)
