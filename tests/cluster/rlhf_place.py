"""A place for runs of reinforcement learning: a model to begin from, prompts, and pools."""

import json
from pathlib import Path
from typing import Any

import yaml

from llmscale.data.corpus import corpus_file
from llmscale.data.tokenizer import tokenizer_hash
from llmscale.data.train_tokenizer import train_tokenizer
from tests.distributed.trainings import Place

FOUR_WORKERS: dict[str, Any] = {
    "train": {"roles": ["actor", "reference"], "processes": 2, "placement": "spread"},
    "critic": {"roles": ["critic"], "processes": 2},
}
STEPS = 3


def make_rlhf(folder: Path, cluster: dict[str, Any]) -> Place:
    """A folder with the run `base` and `rlhf.yaml`, whose rewards are for right sums."""
    place = Place.make(folder)
    train_tokenizer(
        [f"{one} + {one} = {2 * one}" for one in range(200)], folder / "tokenizer", 357, "bpe", threads=1
    )
    file = corpus_file(folder / "corpus", ".json")
    info = json.loads(file.read_text()) | {"tokenizer_hash": tokenizer_hash(folder / "tokenizer")}
    file.write_text(json.dumps(info))
    place.uninterrupted("base", "train.steps=4", "model.max_positions=64")
    records = [{"prompt": f"{one} + 1 =", "answer": one + 1} for one in range(60)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    sections = yaml.safe_load(place.config.read_text())
    sections["task"] = "rlhf"
    sections["model"]["max_positions"] = 64
    sections["tokenizer"] = {"path": str(folder / "tokenizer")}
    sections["data"] = {"train": [{"path": str(folder / "prompts.jsonl")}]}
    sections["train"] = {
        "init_from": str(folder / "runs" / "base"),
        "steps": STEPS,
        "sequence_length": 64,
        "micro_batch_size": 2,
        "precision": "fp32",
    }
    sections["checkpoint"] = {"every": 1}
    sections["cluster"] |= cluster
    sections["rlhf"] = {
        "algorithm": "ppo",
        "rewards": [{"kind": "math"}],
        "rollout": {"prompts": 4, "answers": 2, "max_new_tokens": 8},
        "pools": FOUR_WORKERS,
    }
    (folder / "rlhf.yaml").write_text(yaml.safe_dump(sections))
    return place
