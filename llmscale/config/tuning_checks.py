"""Rules of fine-tuning over several keys; `llmscale.config.checks` asks them."""

from collections.abc import Iterator

from llmscale.config.problems import Problem
from llmscale.config.schema import Config
from llmscale.config.tuning import OF_METHOD, PeftSection


def peft_keys_belong(config: Config) -> Iterator[Problem]:
    """A key that the method does not read was meant for another one."""
    peft, default = config.peft, PeftSection()
    for key in PeftSection.model_fields:
        value = getattr(peft, key)
        if key != "method" and key not in OF_METHOD[peft.method] and value != getattr(default, key):
            reading = [method for method, keys in OF_METHOD.items() if key in keys]
            message = f"is not read by peft.method = {peft.method}, but by {', '.join(reading)}; leave it out"
            yield Problem(f"peft.{key}", value, message)


def peft_has_a_base(config: Config) -> Iterator[Problem]:
    method = config.peft.method
    if method == "none":
        return
    if config.train.init_from is None:
        message = "trains a few weights beside others, which must come from somewhere; set train.init_from"
        yield Problem("peft.method", method, message)
    if method == "freeze" and not config.peft.train:
        yield Problem("peft.train", [], "names nothing to train; patterns such as `model.layers.3.*`")
    if method == "bitfit" and config.model.family != "gpt2":
        message = f"{config.model.family} has no biases to train; take lora, or a gpt2 model"
        yield Problem("peft.method", method, message)


def prefix_fits_positions(config: Config) -> Iterator[Problem]:
    peft, train, limit = config.peft, config.train, config.model.max_positions
    if config.model.family == "gpt2":  # whose positions are learned: there are no others
        limit = limit or train.sequence_length
    if peft.method not in ("prefix_tuning", "prompt_tuning", "p_tuning"):
        return
    if peft.method == "prefix_tuning" and limit and limit < train.sequence_length + peft.virtual_tokens:
        message = (
            f"with train.sequence_length = {train.sequence_length} is beyond model.max_positions = {limit}"
        )
        yield Problem("peft.virtual_tokens", peft.virtual_tokens, message)
    if peft.method != "prefix_tuning" and peft.virtual_tokens >= train.sequence_length:
        message = f"leave no room in train.sequence_length = {train.sequence_length}"
        yield Problem("peft.virtual_tokens", peft.virtual_tokens, message)


def sections_of_task(config: Config) -> Iterator[Problem]:
    """What only another task reads."""
    if config.task == "pretrain":
        if config.train.epochs is not None:
            message = "is for tasks whose data ends, such as sft; set train.steps"
            yield Problem("train.epochs", config.train.epochs, message)
        if config.data.replay is not None:
            message = "is for sft; in pretraining a corpus more in data.train is the same"
            yield Problem("data.replay", "{…}", message)
        if config.peft.placeholders:
            message = (
                "puts learned tokens before texts, and a pretraining row has no beginning; take task=sft"
            )
            yield Problem("peft.method", config.peft.method, message)
    if config.task == "classify":
        for key, value in (("data.replay", config.data.replay), ("train.generate", config.train.generate)):
            if value is not None:
                yield Problem(key, "{…}", "needs a model that writes, which task=classify does not train")
        if config.data.forgetting:
            message = "needs a model that writes, which task=classify does not train"
            yield Problem("data.forgetting", "[…]", message)


def validations_are_made(config: Config) -> Iterator[Problem]:
    """What happens at validations needs some."""
    if config.train.validate_every is not None:
        return
    for key, asked in (
        ("train.early_stopping", config.train.early_stopping is not None),
        ("train.generate", config.train.generate is not None),
        ("checkpoint.keep_best", config.checkpoint.keep_best),
        ("data.forgetting", bool(config.data.forgetting)),
    ):
        if asked:
            yield Problem(key, "set", "happens at validations; set train.validate_every")


def generating_layout(config: Config) -> Iterator[Problem]:
    if config.train.generate is not None and config.parallel.sequence:
        message = (
            "cannot write under sequence parallelism, where a single token cannot be split; turn one off"
        )
        yield Problem("train.generate", "{…}", message)


def samples_have_a_tokenizer(config: Config) -> Iterator[Problem]:
    if config.train.generate is not None and config.tokenizer.path is None:
        message = "makes texts of tokens; set tokenizer.path"
        yield Problem("train.generate", "{…}", message)


def forgetting_is_held_out(config: Config) -> Iterator[Problem]:
    """What tells of forgetting must be text that nothing is trained on."""
    data = config.data
    if not data.forgetting:
        return
    if not data.split[1]:
        message = "leaves nothing that could tell of forgetting; raise the second share"
        yield Problem("data.split", list(data.split), message)
    trained_whole = [entry.path for entry in data.train] if data.validation else []
    for place, entry in enumerate(data.forgetting):
        if config.task == "pretrain" and entry.path in trained_whole:
            message = (
                "is trained on whole, as data.validation names other corpora; leave data.validation out, so "
                "that data.split holds a part of it back"
            )
            yield Problem(f"data.forgetting.{place}.path", entry.path, message)


def start_is_in_memory(config: Config) -> Iterator[Problem]:
    if config.optimizer.distance_penalty and config.zero.offload.optimizer == "nvme":
        message = "keeps the starting weights where the moments are, and nvme has no place for them; use cpu"
        yield Problem("optimizer.distance_penalty", config.optimizer.distance_penalty, message)


RULES = (
    peft_keys_belong,
    peft_has_a_base,
    prefix_fits_positions,
    sections_of_task,
    validations_are_made,
    generating_layout,
    samples_have_a_tokenizer,
    forgetting_is_held_out,
    start_is_in_memory,
)
