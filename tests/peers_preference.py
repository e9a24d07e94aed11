"""The same preference training in TRL's trainers, over pairs that are already tokens.

TRL tokenises texts; here these are the numbers of the tokens (`numbers_tokenizer`), and what it makes of them
is compared with the tokens themselves.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import transformers
from torch import Tensor
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from llmscale.config.schema import Config
from llmscale.model.huggingface import hugging_face_config
from tests.peers import peer
from tests.peers_trl import Recording, arguments_of, as_text, numbers_tokenizer
from tests.preference_pairs import Judged, Pair


@dataclass(frozen=True)
class Theirs:
    """What a loss is called in TRL."""

    trainer: str
    """A key of `TRAINERS`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    at_once: int = 2
    """Examples of a microbatch."""


class RecordingDPO(Recording, DPOTrainer):
    pass


class RecordingCPO(Recording, CPOTrainer):
    pass


class RecordingORPO(Recording, ORPOTrainer):
    pass


class RecordingKTO(Recording, KTOTrainer):
    pass


class RecordingReward(Recording, RewardTrainer):
    pass


TRAINERS: dict[str, tuple[type[Recording], Callable[..., Any]]] = {
    "dpo": (RecordingDPO, DPOConfig),
    "cpo": (RecordingCPO, CPOConfig),
    "orpo": (RecordingORPO, ORPOConfig),
    "kto": (RecordingKTO, KTOConfig),
    "reward": (RecordingReward, RewardConfig),
}


def losses_of_trl(
    config: Config,
    theirs: Theirs,
    examples: Sequence[Pair | Judged],
    examples_a_step: int,
    weights: Mapping[str, Tensor],
    folder: Path,
) -> list[float]:
    """The loss of each step.

    Args:
        config: model, training and optimizer.
        examples: read in their order, one epoch after the other.
        weights: of the start, and of the reference, by Hugging Face name.
        folder: for what the trainer writes.
    """
    build, configure = TRAINERS[theirs.trainer]
    arguments = arguments_of(config, folder, theirs.at_once, examples_a_step)
    options = configure(**arguments, **theirs.options)
    model = start_of(config, weights)
    has_model_beside = theirs.trainer in ("dpo", "kto") and not options.precompute_ref_log_probs
    trainer = build(
        config,
        model=model,
        args=options,
        train_dataset=as_dataset(examples, with_margin=config.reward.margin),
        processing_class=numbers_tokenizer(config.model.vocabulary_size or 0),
        **({"ref_model": copy.deepcopy(model)} if has_model_beside else {}),
    )
    for example, row in zip(examples, trainer.train_dataset, strict=True):
        assert_same_tokens(example, row)
    return trainer.losses_of_steps()


def start_of(config: Config, weights: Mapping[str, Tensor]) -> transformers.PreTrainedModel:
    """The model that begins with `weights`."""
    vocabulary, positions = config.model.vocabulary_size or 0, config.train.sequence_length
    if config.outputs is None:
        model = peer(config.model, vocabulary, positions)
    else:
        tree = hugging_face_config(config.model, vocabulary, positions)
        described = transformers.AutoConfig.for_model(**tree, num_labels=config.outputs)
        model = transformers.AutoModelForSequenceClassification.from_config(described)
    missing, unexpected = model.float().load_state_dict(weights, strict=False)
    assert not unexpected and missing in ([], ["lm_head.weight"]), (missing, unexpected)
    return model


def as_dataset(examples: Sequence[Pair | Judged], with_margin: bool) -> datasets.Dataset:
    return datasets.Dataset.from_list([columns_of(example, with_margin) for example in examples])


def columns_of(example: Pair | Judged, with_margin: bool) -> dict[str, Any]:
    prompt = as_text(example.prompt)
    if isinstance(example, Judged):
        return {"prompt": prompt, "completion": as_text(example.answer), "label": example.is_good}
    answers = {"chosen": as_text(example.chosen), "rejected": as_text(example.rejected)}
    margin = {"margin": example.margin} if with_margin else {}
    return {"prompt": prompt, **answers, **margin}


def assert_same_tokens(example: Pair | Judged, row: Mapping[str, Any]) -> None:
    """TRL's rows are the examples; their columns have other names in each trainer."""
    if isinstance(example, Judged):
        found = {"prompt_ids": example.prompt, "completion_ids": example.answer}
    elif "prompt_ids" in row:
        answers = {"chosen_ids": example.chosen, "rejected_ids": example.rejected}
        found = {"prompt_ids": example.prompt, **answers}
    else:
        names = ("chosen_ids", "rejected_ids")
        if "chosen_input_ids" in row:
            names = ("chosen_input_ids", "rejected_input_ids")
        answers = (example.chosen, example.rejected)
        found = {name: example.prompt + answer for name, answer in zip(names, answers)}
    for name, tokens in found.items():
        assert row[name] == tokens, name
