"""Small runs of reinforcement learning: a model of made-up text answers prompts of words."""

import json
import random
from pathlib import Path

from llmscale.data.corpus import corpus_file
from llmscale.data.tokenizer import tokenizer_hash
from llmscale.data.train_tokenizer import train_tokenizer
from llmscale.runtime.metrics import read_metrics
from tests.distributed.trainings import Place, Run

STEPS = 3
WORDS = ["amber", "basil", "cedar", "dune", "ember", "fjord", "grove", "heath", "inlet", "jetty", "knoll"]
TOLD = ("loss", "reward_mean", "kl_answer", "answer_tokens", "entropy", "policy_loss")

APART = "{train: {roles: [actor], processes: 2}, reference: {roles: [reference]}, critic: {roles: [critic]}}"


def make_place(folder: Path) -> Place:
    """A run `base`, prompts of words, and a reward for answers whose words are short."""
    made = Place.make(folder)
    train_tokenizer([" ".join(WORDS)] * 20, made.folder / "tokenizer", 380, "bpe", threads=1)
    file = corpus_file(made.folder / "corpus", ".json")
    info = json.loads(file.read_text())
    file.write_text(json.dumps(info | {"tokenizer_hash": tokenizer_hash(made.folder / "tokenizer")}))
    draws = random.Random(5)
    with (made.folder / "prompts.jsonl").open("w") as prompts:
        for _ in range(60):
            words = " ".join(draws.sample(WORDS, draws.randint(1, 3)))
            prompts.write(json.dumps({"prompt": f"say {words}", "words": words}) + "\n")
    made.uninterrupted("base", "train.steps=4", "model.max_positions=64")
    return made


def overrides(place: Place, *more: str) -> tuple[str, ...]:
    return (
        "task=rlhf",
        f"train.init_from={place.folder / 'runs' / 'base'}",
        f"tokenizer={place.folder / 'tokenizer'}",
        f"data.train=[{place.folder / 'prompts.jsonl'}]",
        f"train.steps={STEPS}",
        "train.sequence_length=64",
        "model.max_positions=64",
        "train.micro_batch_size=2",
        "checkpoint.every=1",
        "checkpoint.keep_last=5",
        "optimizer.epsilon=0.01",
        "rlhf.rewards=[{kind: function, function: 'tests.rlhf.rewarding:short_words'}]",
        "rlhf.rollout={prompts: 4, answers: 2, max_new_tokens: 10, temperature: 1.0}",
        *more,
    )


def told(run: Run) -> list[dict[str, float]]:
    return [{name: line[name] for name in TOLD} for line in read_metrics(run.folder)]
