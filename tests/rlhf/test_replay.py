"""Answers that are written and not yet learned from, in a checkpoint."""

import random
from pathlib import Path

import numpy as np
import pytest

from llmscale.rlhf.answers import Answer
from llmscale.rlhf.experience import Experience
from llmscale.rlhf.replay import answers_from_bytes, answers_to_bytes
from llmscale.rlhf.transaction import FOLDER, Transaction, commit, newest

SIGNAL = "rollout_log_probabilities"


def random_answer(chance: random.Random, prompt: int) -> Answer:
    length = chance.randint(1, 9)
    tokens = np.array([chance.randrange(2**31) for _ in range(length)], np.int32)
    learned = np.array([chance.random() < 0.5 for _ in range(length)])
    told = np.array([-chance.random() for _ in range(length)], np.float32)
    one = Experience(
        tokens,
        learned,
        prompt,
        chance.randrange(4),
        chance.randrange(9),
        chance.random() < 0.5,
        {SIGNAL: told},
        turn_rewards={place: chance.random() for place in range(0, length, 2)},
    )
    said = ({"role": "user", "content": "Ärger\n\0"}, {"role": "assistant", "content": ""})
    return Answer(one, chance.choice([None, said]), chance.choice([None, "line 3: it died"]))


@pytest.mark.parametrize("seed", range(5))
def test_answers_come_back_as_they_were(seed: int) -> None:
    chance = random.Random(seed)
    answers = [random_answer(chance, prompt) for prompt in range(chance.randint(1, 6))]
    found = answers_from_bytes(answers_to_bytes(answers))
    for one, other in zip(answers, found, strict=True):
        assert (one.said, one.error) == (other.said, other.error)
        ours, theirs = one.experience, other.experience
        for name in ("prompt", "place", "version", "finished", "turn_rewards", "reward", "rewards"):
            assert getattr(ours, name) == getattr(theirs, name)
        for own, their in (
            (ours.tokens_T, theirs.tokens_T),
            (ours.learned_T, theirs.learned_T),
            (ours.signals[SIGNAL], theirs.signals[SIGNAL]),
        ):
            assert own.dtype == their.dtype and np.array_equal(own, their)


def committed(folder: Path, step: int, replay: bytes | None) -> Transaction:
    made = Transaction(step, {}, {"prompts": step}, replay)
    commit(folder, made)
    return made


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / FOLDER).iterdir())


def test_a_transaction_keeps_them_and_takes_them_along_when_it_goes(tmp_path: Path) -> None:
    made = [committed(tmp_path, step, bytes([step]) * 9 if step != 3 else None) for step in (1, 2, 3, 4)]
    assert newest(tmp_path, {}) == made[-1]
    assert newest(tmp_path, {}, before=4) == made[-2]
    assert files(tmp_path) == ["step-00000003.json", "step-00000004.json", "step-00000004.safetensors"]


@pytest.mark.parametrize("harm", ["gone", "other", "short"])
def test_a_transaction_without_its_answers_is_passed_over(tmp_path: Path, harm: str) -> None:
    first, _ = committed(tmp_path, 1, b"first"), committed(tmp_path, 2, b"second")
    file = tmp_path / FOLDER / "step-00000002.safetensors"
    file.unlink() if harm == "gone" else file.write_bytes(b"sec0nd" if harm == "other" else b"")
    assert newest(tmp_path, {}) == first


def test_answers_without_their_transaction_go_with_the_next(tmp_path: Path) -> None:
    """A driver that died between the two files has left them."""
    committed(tmp_path, 1, b"first")
    (tmp_path / FOLDER / "step-00000002.safetensors").write_bytes(b"orphan")
    assert newest(tmp_path, {}) == Transaction(1, {}, {"prompts": 1}, b"first")
    committed(tmp_path, 3, None)
    assert files(tmp_path) == ["step-00000001.json", "step-00000001.safetensors", "step-00000003.json"]
