"""What stands against `train.init_from`, told before any rank starts. No torch."""

from collections.abc import Callable

from llmscale.checkpoint.errors import CheckpointError
from llmscale.checkpoint.store import locate
from llmscale.config.problems import Problem
from llmscale.config.schema import Config, ModelSection
from llmscale.data.tokenizer import tokenizer_hash

ARCHITECTURE: dict[str, Callable[[ModelSection], object]] = {
    "model.family": lambda model: model.family,
    "model.hidden_size": lambda model: model.hidden_size,
    "model.layers": lambda model: model.layers,
    "model.heads": lambda model: model.heads,
    "model.kv_heads": lambda model: model.kv_heads_or_default,
    "model.head_size": lambda model: model.head_size_or_default,
    "model.ffn_size": lambda model: model.ffn_size_or_default,
    "model.tie_embeddings": lambda model: model.tie_embeddings_or_default,
    "model.norm_epsilon": lambda model: model.norm_epsilon,
}
"""What weights stand on. Positions, rotary base and window may change: that is how contexts grow."""


def check_init_from(config: Config) -> list[Problem]:
    """Problems of the checkpoint that `train.init_from` names; none where it names none."""
    source = config.train.init_from
    if source is None:
        return []
    try:
        found = [checkpoint for checkpoint in locate(source) if checkpoint.state == "committed"]
    except CheckpointError as error:
        return [Problem("train.init_from", source, str(error))]
    if not found or found[-1].manifest is None:
        return [Problem("train.init_from", source, "has no committed checkpoint")]
    description = found[-1].manifest.description
    theirs = ModelSection.model_validate(description["model"])
    problems = [
        Problem(
            key, value(config.model), f"is {value(theirs)} in {found[-1].path}, which train.init_from names"
        )
        for key, value in ARCHITECTURE.items()
        if value(config.model) != value(theirs)
    ]
    return problems + _tokenizer_problems(config, description.get("tokenizer_hash"))


def _tokenizer_problems(config: Config, theirs: object) -> list[Problem]:
    path = config.tokenizer.path
    if path is None or not (path / "tokenizer.json").is_file():  # a problem of its own, or none
        return []
    if theirs is None or tokenizer_hash(path) == theirs:
        return []
    message = (
        f"is not the tokenizer (SHA-256 {str(theirs)[:12]}…) whose tokens train.init_from's weights know"
    )
    return [Problem("tokenizer.path", path, message)]
