"""What transformers, and the peft library on top of it, has to know of a head: its class, its labels, and
what pads texts."""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config
from llmscale.config.tuning import ClassifySection
from llmscale.data.tokenizer import open_encoder, special_token_ids, special_tokens
from llmscale.model.huggingface import CLASSIFIERS

LABELLED = "classify"
"""Where a manifest's description has the labels that the head's scores are of."""
REWARD = "reward"
"""Where it says that its one score is a reward, and what that was learned by."""
NUMBER = "LABEL_0"
"""What transformers calls the one score of a regression."""


def described_head(config: Config) -> dict[str, JsonValue]:
    """What the checkpoints of a run say of its head; nothing of a model that writes."""
    if config.task == "classify":
        return {LABELLED: _described(config.classify)}
    if config.task == "reward":
        return {
            LABELLED: _described(ClassifySection(problem="regression")),
            REWARD: {"loss": config.reward.loss},
        }
    return {}


def _described(head: ClassifySection) -> dict[str, JsonValue]:
    return head.model_dump(mode="json", include={"problem", "labels"})


def config_of_head(description: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The part of a config that gives a model the head that a checkpoint tells of; nothing for one that
    writes."""
    if REWARD in description:
        return {"task": "reward", REWARD: description[REWARD]}
    return {"task": "classify", LABELLED: description[LABELLED]} if LABELLED in description else {}


def head_of(description: Mapping[str, JsonValue]) -> ClassifySection | None:
    """What the model that a checkpoint holds tells of texts; None of one that writes."""
    found = description.get(LABELLED)
    return None if found is None else ClassifySection.model_validate(found)


def outputs_of(head: ClassifySection | None) -> int | None:
    """Scores that it gives."""
    if head is None:
        return None
    return 1 if head.problem == "regression" else len(head.labels)


def with_head(
    config: Mapping[str, Any],
    head: ClassifySection,
    padding: "Padding",
) -> dict[str, Any]:
    """The `config.json` of the model with its head in place of the output layer.

    Args:
        config: of the model that writes.
    """
    return {
        **config,
        **what_it_tells(head, padding),
        "architectures": [CLASSIFIERS[config["model_type"]]],
        "tie_word_embeddings": False,
        "use_cache": False,
    }


def what_it_tells(head: ClassifySection, padding: "Padding") -> dict[str, Any]:
    """The part of `config.json` that is the head's own, whatever model it is on."""
    labels = [NUMBER] if head.problem == "regression" else head.labels
    return {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        "pad_token_id": padding.id,
        "problem_type": f"{head.problem}{'' if head.problem == 'regression' else '_classification'}",
    }


@dataclass(frozen=True)
class Padding:
    """What fills up rows: transformers takes the scores of the last token that is another than this one."""

    id: int | None
    """None: it takes one text at a time, whose last token it is."""
    token: str | None = None
    """The same, to be said to a tokenizer that pads with something else, or with nothing."""


def padding_of_texts(tokenizer: Path | None) -> Padding:
    """For texts as the tokenizer makes them.

    Raises:
        InputError: transformers could not tell where a padded text ends.
    """
    if tokenizer is None:
        return Padding(None)
    known = special_token_ids(tokenizer)
    pad = known["eos_token_id"] if known["pad_token_id"] is None else known["pad_token_id"]
    if pad is not None and open_encoder(tokenizer).encode("a", add_special_tokens=True).ids[-1:] == [pad]:
        message = (
            "ends every text with the token that pads it too, and transformers could not tell one from "
            "the other; give it a pad_token of its own"
        )
        raise InputError([Problem("--tokenizer", tokenizer, message)])
    return Padding(pad)


def padding_of_answers(tokenizer: Path | None, ends: Set[int]) -> Padding:
    """For texts that all end with one of `ends`, which is scored, so that it must not pad: the tokenizer's
    own padding where that is none of them, else another of its special tokens."""
    if tokenizer is None:
        return Padding(None)
    named, encoder = special_tokens(tokenizer), open_encoder(tokenizer)
    added = (token.content for token in encoder.get_added_tokens_decoder().values() if token.special)
    for token in (*(named.get(f"{kind}_token") for kind in ("pad", "bos", "unk")), *added):
        number = None if token is None else encoder.token_to_id(token)
        if number is not None and number not in ends:
            return Padding(number, None if token == named.get("pad_token") else token)
    return Padding(None)
