"""What a training loop tells the outside, and to whom.

A hook hears of the start, of every step, validation and save, and of the end. The loop knows `Hooks`,
which passes each word on in order; what a hook does with it (metrics file, events, wandb) is its own.
Only rank 0 needs hooks that write.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from llmscale.control.watchdog import Phase


@dataclass(frozen=True)
class RunStart:
    """What is known before the first step of this process."""

    step: int
    """Steps already done: 0, or the restored step."""
    steps: int
    """Step at which the run ends."""
    samples: int
    """Samples already consumed."""
    tokens: int
    """Tokens already trained on."""
    world_size: int
    parameters: int
    """Parameters of the whole model."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """Anything else worth keeping beside the run (layout, device, ...), fit for JSON."""


@dataclass(frozen=True)
class StepRecord:
    """One line of `metrics.jsonl`."""

    step: int
    """Steps done, this one included: the first is 1."""
    samples: int
    """Samples consumed since the start of the run."""
    tokens: int
    """Tokens trained on since the start of the run."""
    loss: float
    """Exact global mean over the tokens that count."""
    grad_norm: float
    """Global norm before clipping."""
    lr: float
    step_seconds: float
    tokens_per_second: float
    mfu: float | None
    """Model FLOPs a second over the peak of all devices, 0..1; None where the peak is unknown."""
    extra: Mapping[str, JsonValue] = field(default_factory=dict)
    """The task's own numbers, and `memory_bytes`."""


@dataclass(frozen=True)
class Forgetting:
    """How well the model still knows what it was pretrained on."""

    loss: float
    """On held-out text of that corpus."""
    score: float
    """How much higher that is than before the first step."""


@dataclass(frozen=True)
class Sample:
    """What the model goes on with."""

    prompt: str
    text: str
    reward: float | None = None
    """What it is worth; None where nothing tells, or where what should has failed."""
    rewards: Mapping[str, float] = field(default_factory=dict)
    """The parts of it, by name, before their weights."""


@dataclass(frozen=True)
class Part:
    """What a step is about, of a task whose steps have parts."""

    step: int
    """The one that is being made; the first is 1."""
    name: str
    """`rollout`, `learning`, …: a word of the task."""
    count: int = 0
    """Of the things that it is about, answers; 0: nobody counts."""


@dataclass(frozen=True)
class ValidationRecord:
    step: int
    """Steps done; 0 before the first."""
    loss: float | None
    """Mean over all that counts in the data of the task: what is to fall. None for a task of rewards."""
    perplexity: float | None
    """None where the loss is not of tokens."""
    seconds: float
    metrics: Mapping[str, JsonValue] = field(default_factory=dict)
    """The objective's own."""
    forgetting: Forgetting | None = None
    samples: Sequence[Sample] = ()
    reward: float | None = None
    """Mean over the answers to held-out prompts: what is to grow. None for a task of losses."""


@dataclass(frozen=True)
class SaveRecord:
    """A checkpoint that is committed."""

    step: int
    seconds: float
    path: str


class Hook:
    """Hears everything and does nothing; subclasses override what they care for."""

    def on_start(self, start: RunStart) -> None:
        """Before the first step."""

    def on_phase(self, phase: Phase) -> None:
        """When something other than the step before begins, and when steps go on."""

    def on_waiting(self, waits: bool) -> None:
        """Once a second while this process only waits for others, whose time is limited; False: no more."""

    def on_part(self, part: Part) -> None:
        """When a part of a step begins."""

    def on_step(self, record: StepRecord) -> None:
        """After every optimizer step."""

    def on_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """After a step, now and then: some of what it has learned from."""

    def on_validation(self, record: ValidationRecord) -> None:
        """After every validation."""

    def on_early_stop(self, step: int, reason: str) -> None:
        """When a run ends before its last step because training on would not help."""

    def on_save(self, record: SaveRecord) -> None:
        """After a checkpoint is committed."""

    def on_end(self, step: int, preempted: bool) -> None:
        """After the last step of this process; `preempted` where a signal asked it to stop."""


class Hooks(Hook):
    """Hooks in a row."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self.hooks = list(hooks)

    def on_start(self, start: RunStart) -> None:
        for hook in self.hooks:
            hook.on_start(start)

    def on_phase(self, phase: Phase) -> None:
        for hook in self.hooks:
            hook.on_phase(phase)

    def on_waiting(self, waits: bool) -> None:
        for hook in self.hooks:
            hook.on_waiting(waits)

    def on_part(self, part: Part) -> None:
        for hook in self.hooks:
            hook.on_part(part)

    def on_step(self, record: StepRecord) -> None:
        for hook in self.hooks:
            hook.on_step(record)

    def on_samples(self, step: int, samples: Sequence[Sample]) -> None:
        for hook in self.hooks:
            hook.on_samples(step, samples)

    def on_validation(self, record: ValidationRecord) -> None:
        for hook in self.hooks:
            hook.on_validation(record)

    def on_early_stop(self, step: int, reason: str) -> None:
        for hook in self.hooks:
            hook.on_early_stop(step, reason)

    def on_save(self, record: SaveRecord) -> None:
        for hook in self.hooks:
            hook.on_save(record)

    def on_end(self, step: int, preempted: bool) -> None:
        for hook in self.hooks:
            hook.on_end(step, preempted)


def numbers_of(metrics: Mapping[str, JsonValue]) -> dict[str, int | float]:
    """Those that are one number: a step has no room for tables."""
    return {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
