"""Rules of preference training over several keys; `llmscale.config.checks` asks them."""

from collections.abc import Iterator, Mapping

from llmscale.config.preferences import OF_DPO_LOSS, OF_REWARD_LOSS, DpoSection, RewardSection
from llmscale.config.problems import Problem
from llmscale.config.schema import Config
from llmscale.config.tuning import SWITCHED_OFF


def keys_of_loss(config: Config) -> Iterator[Problem]:
    """A key that the loss does not read was meant for another one."""
    yield from _foreign("reward", config.reward, OF_REWARD_LOSS)
    yield from _foreign("dpo", config.dpo, OF_DPO_LOSS)


def _foreign(
    name: str, section: RewardSection | DpoSection, read_by: Mapping[str, tuple[str, ...]]
) -> Iterator[Problem]:
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if key != "loss" and key not in read_by[section.loss] and value != field.default:
            reading = ", ".join(loss for loss, keys in read_by.items() if key in keys)
            message = f"is not read by {name}.loss = {section.loss}, but by {reading}; leave it out"
            yield Problem(f"{name}.{key}", value, message)


def dpo_has_a_start(config: Config) -> Iterator[Problem]:
    if config.task == "dpo" and config.train.init_from is None:
        message = "tells a model that writes already which answers are better; name it, such as a run of sft"
        yield Problem("train.init_from", None, message)


def reference_without_adapter(config: Config) -> Iterator[Problem]:
    dpo, method = config.dpo, config.peft.method
    if config.task != "dpo" or dpo.reference != "adapter" or method in SWITCHED_OFF:
        return
    message = f"needs a peft.method of {', '.join(SWITCHED_OFF)} and has {method}; take precomputed or held"
    yield Problem("dpo.reference", dpo.reference, message)


def held_reference_knows_no_virtual_tokens(config: Config) -> Iterator[Problem]:
    dpo, method = config.dpo, config.peft.method
    if config.task == "dpo" and dpo.reference == "held" and config.peft.placeholders:
        message = (
            f"would read the virtual tokens of peft.method = {method}, which only the trained model has; "
            "take precomputed"
        )
        yield Problem("dpo.reference", dpo.reference, message)


def preferences_alone(config: Config) -> Iterator[Problem]:
    """What neither task can do with."""
    if config.task not in ("reward", "dpo"):
        return
    if config.data.replay is not None:
        message = "mixes rows of text among those of records, which only task=sft can learn from"
        yield Problem("data.replay", "{…}", message)
    writing = [("train.generate", config.train.generate), ("data.forgetting", config.data.forgetting)]
    for key, asked in writing if config.task == "reward" else []:
        if asked:
            yield Problem(key, "set", "needs a model that writes, which task=reward does not train")


RULES = (
    keys_of_loss,
    dpo_has_a_start,
    reference_without_adapter,
    held_reference_knows_no_virtual_tokens,
    preferences_alone,
)
