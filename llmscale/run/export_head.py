"""What transformers, and the peft library on top of it, has to know of a head: its class, its labels, and
what pads texts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config
from llmscale.config.tuning import ClassifySection
from llmscale.data.tokenizer import open_encoder
from llmscale.model.huggingface import ARCHITECTURES

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
    special_tokens: Mapping[str, int | None],
    tokenizer: Path | None,
) -> dict[str, Any]:
    """The `config.json` of the model with its head in place of the output layer.

    Args:
        config: of the model that writes.
        special_tokens: ids of the tokens that begin, end and pad a text.
        tokenizer: their tokenizer.

    Raises:
        InputError: transformers could not tell where a padded text ends.
    """
    return {
        **config,
        **what_it_tells(head, special_tokens, tokenizer),
        "architectures": [_classifier(config["model_type"])],
        "tie_word_embeddings": False,
        "use_cache": False,
    }


def what_it_tells(
    head: ClassifySection, special_tokens: Mapping[str, int | None], tokenizer: Path | None
) -> dict[str, Any]:
    """The part of `config.json` that is the head's own, whatever model it is on.

    Raises:
        InputError: transformers could not tell where a padded text ends.
    """
    labels = [NUMBER] if head.problem == "regression" else head.labels
    return {
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        "pad_token_id": _padding(special_tokens, tokenizer),
        "problem_type": f"{head.problem}{'' if head.problem == 'regression' else '_classification'}",
    }


def _classifier(family: str) -> str:
    name = ARCHITECTURES[family].removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    return f"{name}ForSequenceClassification"


def _padding(special_tokens: Mapping[str, int | None], tokenizer: Path | None) -> int | None:
    """transformers takes the scores of the last token that is another than this one."""
    pad = special_tokens["pad_token_id"]
    pad = special_tokens["eos_token_id"] if pad is None else pad
    if tokenizer is not None and pad is not None:
        ids = open_encoder(tokenizer).encode("a", add_special_tokens=True).ids
        if ids[-1:] == [pad]:
            message = (
                "ends every text with the token that pads it too, and transformers could not tell one from "
                "the other; give it a pad_token of its own"
            )
            raise InputError([Problem("--tokenizer", tokenizer, message)])
    return pad
