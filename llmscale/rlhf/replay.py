"""Answers that are written and not yet learned from, as bytes of a checkpoint and back."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from llmscale.rlhf.answers import Answer
from llmscale.rlhf.experience import Experience

SIGNAL = "signal/"
Array = NDArray[Any]


def answers_to_bytes(answers: Sequence[Answer]) -> bytes:
    """Safetensors: the tokens of all answers behind each other, with their lengths; what is text is JSON."""
    experiences = [one.experience for one in answers]
    texts = [
        {
            "said": one.said,
            "error": one.error,
            "turn_rewards": [[place, reward] for place, reward in one.experience.turn_rewards.items()],
        }
        for one in answers
    ]
    arrays: dict[str, Array] = {
        "length": np.array([len(one.tokens_T) for one in experiences], np.int64),
        "prompt": np.array([one.prompt for one in experiences], np.int64),
        "place": np.array([one.place for one in experiences], np.int64),
        "version": np.array([one.version for one in experiences], np.int64),
        "finished": np.array([one.finished for one in experiences], np.bool_),
        "tokens": np.concatenate([one.tokens_T for one in experiences]),
        "learned": np.concatenate([one.learned_T for one in experiences]),
        "texts": np.frombuffer(json.dumps(texts).encode(), np.uint8),
    }
    for name in experiences[0].signals:
        arrays[SIGNAL + name] = np.concatenate([one.signals[name] for one in experiences])
    return save(arrays)


def answers_from_bytes(stored: bytes) -> list[Answer]:
    arrays = load(stored)
    texts = json.loads(arrays["texts"].tobytes())
    stops = np.cumsum(arrays["length"]).tolist()
    return [
        _answer(arrays, number, slice(first, stop), texts[number])
        for number, (first, stop) in enumerate(zip([0, *stops[:-1]], stops))
    ]


def _answer(arrays: Mapping[str, Array], number: int, tokens: slice, texts: Mapping[str, Any]) -> Answer:
    signals = {
        name.removeprefix(SIGNAL): array[tokens] for name, array in arrays.items() if name.startswith(SIGNAL)
    }
    experience = Experience(
        arrays["tokens"][tokens],
        arrays["learned"][tokens],
        int(arrays["prompt"][number]),
        int(arrays["place"][number]),
        int(arrays["version"][number]),
        bool(arrays["finished"][number]),
        signals,
        turn_rewards={int(place): float(reward) for place, reward in texts["turn_rewards"]},
    )
    said = None if texts["said"] is None else tuple(texts["said"])
    return Answer(experience, said, texts["error"])
