"""Sections of fine-tuning: chats, classification, and the parameter-efficient methods."""

from typing import Annotated, Literal

from pydantic import Field

from llmscale.config.section import NonNegativeFloat, PositiveFloat, PositiveInt, Probability, Section


class SftSection(Section):
    """How conversations become tokens (`task: sft`)."""

    learn: Literal["assistant", "all", "last"] = "assistant"
    """Tokens that count in the loss: all turns of the assistant, everything, or its last turn only."""
    chat_template: str | None = None
    """One of ours (`plain`, `chatml`, `llama3`, `zephyr`) or a `.jinja` file. Left out: the tokenizer's own,
    `plain` where it has none."""
    packing: bool = True
    """Several conversations a row, none of which sees another; else one a row."""
    too_long: Literal["truncate", "drop"] = "truncate"
    """A conversation longer than `train.sequence_length` loses its last turns, or is left out."""


class ClassifySection(Section):
    """What is told of a text (`task: classify`)."""

    problem: Literal["single_label", "regression"] = "single_label"
    """One of several labels, or a number."""
    labels: list[str] = []
    """Names of the labels, in the order of the model's outputs. Left out: those in the training data,
    sorted."""
    too_long: Literal["truncate", "drop"] = "truncate"
    """A text longer than `train.sequence_length` loses its end, or is left out."""


PeftMethod = Literal[
    "none", "lora", "dora", "adapter", "prefix_tuning", "prompt_tuning", "p_tuning", "bitfit", "freeze"
]


class PeftSection(Section):
    """Which weights are trained: all of them (`none`), some (`bitfit`, `freeze`), or few new ones."""

    @classmethod
    def shorthand(cls) -> str:
        return "method"

    method: PeftMethod = "none"
    """LoRA (arXiv:2106.09685), DoRA (arXiv:2402.09353), bottleneck adapters (arXiv:1902.00751), prefix tuning
    (arXiv:2101.00190), prompt tuning (arXiv:2104.08691), p-tuning (arXiv:2103.10385), BitFit
    (arXiv:2106.10199), or named parts of the model (`freeze`)."""
    rank: PositiveInt = 16
    """Of the update (lora, dora)."""
    alpha: PositiveFloat = 32.0
    """The update is scaled by `alpha / rank` (lora, dora)."""
    rslora: bool = False
    """Scale by `alpha / sqrt(rank)` instead (arXiv:2312.03732; lora, dora)."""
    dropout: Probability = 0.0
    """On the input of the update (lora, dora)."""
    target_modules: list[str] = []
    """Linear layers that get an update, by the end of their Hugging Face names (`q_proj`) or by a pattern
    with `*`. Left out: all but embedding and output (lora, dora)."""
    bottleneck: PositiveInt = 64
    """Width inside an adapter (adapter)."""
    virtual_tokens: PositiveInt = 20
    """Learned tokens before each text (prompt_tuning, p_tuning), or keys and values in each layer
    (prefix_tuning)."""
    encoder_hidden_size: PositiveInt | None = None
    """Width of the network that makes the virtual tokens. Left out: the model's (p_tuning)."""
    train: list[str] = []
    """Patterns of the Hugging Face names of the weights that are trained, all others stay (freeze)."""

    @property
    def placeholders(self) -> int:
        """Virtual tokens that stand in the data, before each text."""
        return self.virtual_tokens if self.method in ("prompt_tuning", "p_tuning") else 0


SWITCHED_OFF = ("lora", "dora", "adapter")
"""Methods without which the model is what it started from."""
NOT_WEIGHTS = {
    "adapter": "puts layers of its own between those of the model, and no weights of the model can do that",
    "prefix_tuning": "trains keys and values that are seen before each text, and no weights of the model",
    "prompt_tuning": "trains tokens that stand before each text, and no weights of the model",
    "p_tuning": "trains tokens that stand before each text, and no weights of the model",
}
"""Methods whose result cannot be merged, and why."""

OF_METHOD: dict[str, tuple[str, ...]] = {
    "none": (),
    "lora": ("rank", "alpha", "rslora", "dropout", "target_modules"),
    "dora": ("rank", "alpha", "rslora", "dropout", "target_modules"),
    "adapter": ("bottleneck",),
    "prefix_tuning": ("virtual_tokens",),
    "prompt_tuning": ("virtual_tokens",),
    "p_tuning": ("virtual_tokens", "encoder_hidden_size"),
    "bitfit": (),
    "freeze": ("train",),
}
"""Keys that each method reads."""


class EarlyStopping(Section):
    """End once validation has not become better for a while."""

    patience: PositiveInt = 3
    """Validations in a row without a better loss."""
    min_delta: NonNegativeFloat = 0.0
    """How much lower the loss must be to count as better."""


class SampleSection(Section):
    """Texts that the model writes at each validation, for a reader to judge."""

    prompts: Annotated[list[str], Field(min_length=1)]
    """With `task: sft` and `task: dpo` each is what a user says."""
    max_new_tokens: PositiveInt = 64
    temperature: NonNegativeFloat = 0.0
    """0: the likeliest token each time."""
