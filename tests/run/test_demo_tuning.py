"""The demo's fine-tuning as far as it needs no ranks: its data, its configs, what it tells of a run."""

import json
from pathlib import Path

import pytest

from llmscale.config.load import load_config
from llmscale.run import demo_tuning
from llmscale.run.demo_docstrings import conversations, documented_functions, write_docstrings
from llmscale.run.demo_preferences import write_preferences

SOURCE = '''
class Table:
    @property
    def rows(self, first=0):
        """Return the rows
        as a list.

        From the first.
        """
        # said elsewhere
        return self._rows[first:]

    def undocumented(self):
        return 1


def empty():
    """Nothing is done here."""
'''


def test_functions_and_their_conversations() -> None:
    rows, empty = sorted(documented_functions(SOURCE), key=lambda function: function.head, reverse=True)
    assert rows.head == "def rows(self, first=0):"
    assert rows.summary == "Return the rows as a list."
    assert rows.code == "def rows(self, first=0):\n    return self._rows[first:]"
    assert empty.code == "def empty():\n    pass"
    asked, written = conversations(rows)
    assert [message["role"] for message in asked["messages"]] == ["user", "assistant"]
    assert asked["messages"][0]["content"].endswith(rows.head)
    assert asked["messages"][1]["content"] == rows.summary
    assert written["messages"][0]["content"].endswith(f"{rows.head}\n{rows.summary}")
    assert written["messages"][1]["content"] == rows.code


def test_what_is_no_python_has_no_functions() -> None:
    assert list(documented_functions("print 'of another century'")) == []


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Of one function each, and one with three of them once more."""
    files = []
    for number in range(60):
        files.append(tmp_path / f"{number}.py")
        files[-1].write_text(f'def function_{number}():\n    """Gives the number {number}."""\n')
    (tmp_path / "copies.py").write_text("".join(file.read_text() for file in files[:3]))
    return [*files, tmp_path / "copies.py"]


def test_nothing_is_there_twice_or_in_both_splits(files: list[Path], tmp_path: Path) -> None:
    counts = write_docstrings(files, tmp_path / "sft")
    heads = {
        split: {
            json.loads(line)["messages"][0]["content"].split("\n")[1]
            for line in (tmp_path / "sft" / f"{split}.jsonl").read_text().splitlines()
        }
        for split in counts
    }
    assert len(heads["train"]) + len(heads["validation"]) == len(files) - 1
    assert 0 < len(heads["validation"]) < len(heads["train"])
    assert sum(counts.values()) == 2 * (len(files) - 1)


def test_preferences_cannot_be_told_from_the_answer_alone(files: list[Path], tmp_path: Path) -> None:
    counts = write_preferences(files, tmp_path / "preferences")
    questions: dict[str, set[str]] = {}
    for split, count in counts.items():
        lines = (tmp_path / "preferences" / f"{split}.jsonl").read_text().splitlines()
        pairs = [[json.loads(line)[name] for name in ("prompt", "chosen", "rejected")] for line in lines]
        asked, better, worse = ([said[0]["content"] for said in column] for column in zip(*pairs))
        assert len(lines) == count > 1
        assert sorted(better) == sorted(worse)
        assert all(one != other for one, other in zip(better, worse))
        for question, answer in zip(asked, better):
            assert answer.startswith("def ") == question.startswith("Write")
        questions[split] = {*asked}
    assert sum(map(len, questions.values())) == 2 * (len(files) - 1)
    assert questions["train"].isdisjoint(questions["validation"])


@pytest.mark.parametrize("config", [demo_tuning.SFT, demo_tuning.LORA])
@pytest.mark.parametrize("minutes", [0.01, 2.0, 60.0])
def test_every_pace_is_a_valid_config(repository: Path, config: Path, minutes: float) -> None:
    steps = demo_tuning.steps_for(config, minutes, 0.4)
    overrides = demo_tuning.overrides(Path("demo/model"), Path("demo/runs/one"), steps)
    loaded = load_config(repository / config, overrides)
    assert loaded.train.steps == steps
    assert loaded.train.init_from == Path("demo/model")
    assert demo_tuning.FEWEST_STEPS <= steps <= demo_tuning.MOST_STEPS


def test_what_is_told_of_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    lines = [
        {"event": "validated", "time": 0.0, "step": step, "loss": loss, "forgetting": {"score": score}}
        for step, loss, score in ((0, 4.0, 0.0), (4, 3.0, 0.25), (8, 2.5, 0.5))
    ]
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(demo_tuning.DemoFailed, match="no checkpoint"):
        demo_tuning.outcome(run)
    told = demo_tuning.told(demo_tuning.Tuned(run, 4.0, 2.5, 0.5, 1_500_000))
    assert "4.00 → 2.50" in told
    assert "+0.50" in told
    assert "1.5 MB" in told
