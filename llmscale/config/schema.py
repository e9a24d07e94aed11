"""The configuration: one pydantic model a section, unknown keys refused.

What one section alone can tell is checked here; what takes two sections is a rule in
`llmscale.config.checks`; what takes files is checked where those files are understood
(`llmscale.data.checks`). Nothing in this package imports torch.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from llmscale.config.cluster import ClusterSection
from llmscale.config.preferences import DpoSection, PreferencesSection, RewardSection
from llmscale.config.rlhf import RlhfSection
from llmscale.config.section import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Section,
)
from llmscale.config.tuning import ClassifySection, EarlyStopping, PeftSection, SampleSection, SftSection


class RunSection(Section):
    """Where a run keeps what it makes."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")] | None = None
    """Name of the run and of its folder. Left out: the config file's name."""
    root: Path = Path("runs")
    """Folder that holds the run folders."""


class RopeScaling(Section):
    """Scaling of rotary frequencies for longer contexts, as in transformers."""

    type: Literal["llama3", "linear"] = "llama3"
    """llama3 slows slow turns only (arXiv:2407.21783); linear slows all by `factor` and uses no more."""
    factor: PositiveFloat = 8.0
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0
    original_max_positions: PositiveInt = 8192


class ModelSection(Section):
    """What the model is: a preset of `configs/model/`, fields, or a preset with some fields changed."""

    @classmethod
    def shorthand(cls) -> str:
        return "preset"

    preset: str | None = None
    """Name of a file in `configs/model/` whose fields stand wherever this section says nothing."""
    family: Literal["llama", "mistral", "qwen3", "gpt2"] = "llama"
    """Architecture, and with it the Hugging Face names of the weights."""
    hidden_size: PositiveInt = 256
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    kv_heads: PositiveInt | None = None
    """Key and value heads (grouped-query attention). Left out: as many as `heads`."""
    head_size: PositiveInt | None = None
    """Width of one head. Left out: `hidden_size / heads`."""
    ffn_size: PositiveInt | None = None
    """Width inside the feed-forward layer. Left out: 4 × hidden for gpt2, else 8/3 × hidden (next 64)."""
    vocabulary_size: PositiveInt | None = None
    """Rows of the embedding. Left out: the tokenizer's size."""
    tie_embeddings: bool | None = None
    """One matrix for embedding and output. Left out: true for gpt2, false else."""
    max_positions: PositiveInt | None = None
    """Longest sequence. Left out: `train.sequence_length`."""
    rope_base: PositiveFloat = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_epsilon: PositiveFloat = 1e-5
    sliding_window: PositiveInt | None = None
    """Tokens that a token sees, itself included (mistral). Left out: all before it."""
    dropout: Probability = 0.0
    """Dropout on attention output, feed-forward output and embeddings."""
    initializer_range: PositiveFloat = 0.02
    """Standard deviation of initial weights; output projections are scaled by 1/sqrt(2 × layers)."""

    @property
    def kv_heads_or_default(self) -> int:
        return self.kv_heads or self.heads

    @property
    def head_size_or_default(self) -> int:
        return self.head_size or self.hidden_size // self.heads

    @property
    def ffn_size_or_default(self) -> int:
        if self.ffn_size:
            return self.ffn_size
        if self.family == "gpt2":
            return 4 * self.hidden_size
        return -(-8 * self.hidden_size // 3 // 64) * 64

    @property
    def tie_embeddings_or_default(self) -> bool:
        return self.family == "gpt2" if self.tie_embeddings is None else self.tie_embeddings


class TokenizerSection(Section):
    @classmethod
    def shorthand(cls) -> str:
        return "path"

    path: Path | None = None
    """Folder with a Hugging Face tokenizer (`tokenizer.json`), as `llmscale data tokenizer` writes it."""


class CorpusEntry(Section):
    """A tokenised corpus and its share in the blend."""

    @classmethod
    def shorthand(cls) -> str:
        return "path"

    path: Path
    """Corpus made by `llmscale data tokenize`: the path without `.bin` / `.idx`. For other tasks: a
    file of records (`.jsonl`, `.jsonl.gz`, `.jsonl.zst`, `.parquet`), or `hf:NAME[:SPLIT]`."""
    weight: PositiveFloat = 1.0
    """Share in the blend, relative to the other entries."""
    fields: dict[str, str] = {}
    """What the fields of the records are called: `{prompt: question, completion: answer}` (all tasks but
    pretrain)."""


class ReplaySection(Section):
    """Text of the pretraining corpus among what is trained on, against forgetting it."""

    corpus: CorpusEntry
    """Corpus made by `llmscale data tokenize`."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Of the rows."""


class DataSection(Section):
    train: list[CorpusEntry] = []
    """Corpora to train on, blended by weight."""
    validation: list[CorpusEntry] = []
    """Corpora to validate on. Left out: the second part of `split` of the training corpora."""
    split: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat] = (0.98, 0.02, 0.0)
    """Shares of documents for training, validation and test, where `validation` names no corpora."""
    replay: ReplaySection | None = None
    forgetting: list[CorpusEntry] = []
    """Pretraining corpora whose validation loss, before, during and after, tells what is forgotten."""
    prefetch: NonNegativeInt = 2
    """Steps whose batches are read ahead of training."""


class BatchWarmup(Section):
    """Global batch size grows in equal steps from `start` to `train.global_batch_size`."""

    start: PositiveInt
    """Global batch size of the first step."""
    increment: PositiveInt
    """How much each stage adds."""
    samples: PositiveInt
    """Samples over which the growth is spread."""


STEPS = re.compile(r"([1-9][0-9]*)(?::([1-9][0-9]*))?")


def _step_range(value: object) -> object:
    """As text; YAML has read `10` as a number."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if text is None:
        return None
    found = STEPS.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError("is no steps: write the first and the last one (10:13) or one alone (10), from 1 on")
    first, last = int(found[1]), int(found[2] or found[1])
    if first > last:
        raise ValueError(f"ends before it begins; write {last}:{first}")
    return text


class TrainSection(Section):
    steps: PositiveInt = 100
    """Optimizer steps of the whole schedule."""
    epochs: PositiveFloat | None = None
    """Passes over the training data, in place of `steps` (all tasks but pretrain)."""
    stop_at: PositiveInt | None = None
    """End after this step; the schedule stays that of `steps`."""
    global_batch_size: PositiveInt = 8
    """Sequences in one optimizer step, over all ranks."""
    micro_batch_size: PositiveInt = 1
    """Sequences that one rank works on at once."""
    sequence_length: PositiveInt = 256
    precision: Literal["fp32", "bf16", "fp64"] = "bf16"
    """bf16 keeps fp32 master weights and accumulates gradients in fp32; fp64 is for proofs."""
    seed: int = 1234
    init_from: Path | None = None
    """Run, checkpoint or Hugging Face folder whose weights training starts from (continual pretraining)."""
    validate_every: PositiveInt | None = None
    """Steps between validations. Left out: none."""
    validation_batches: PositiveInt = 8
    """Global batches in one validation."""
    early_stopping: EarlyStopping | None = None
    generate: SampleSection | None = None
    batch_warmup: BatchWarmup | None = None
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass: none, the core attention, or every layer."""
    profile: Annotated[str | None, BeforeValidator(_step_range)] = None
    """Steps to record, the first and the last one (`10:13`) or one alone (`10`): where their time and memory
    go stands in `profile/` of the run afterwards. Left out: none."""

    @property
    def last_step(self) -> int:
        """That a run ends with, unless it stops early. Under `epochs` only the data tells the steps."""
        return min(self.steps, self.stop_at or self.steps)

    @property
    def profiled_steps(self) -> tuple[int, int] | None:
        """First and last step to record."""
        if self.profile is None:
            return None
        first, _, last = self.profile.partition(":")
        return int(first), int(last or first)


class OptimizerSection(Section):
    @classmethod
    def shorthand(cls) -> str:
        return "name"

    name: Literal["adamw"] = "adamw"
    lr: PositiveFloat = 3e-4
    """Peak learning rate."""
    min_lr: NonNegativeFloat | None = None
    """Learning rate at the end of the schedule. Left out: a tenth of `lr`."""
    betas: tuple[Probability, Probability] = (0.9, 0.95)
    epsilon: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay; norms and biases have none."""
    clip: NonNegativeFloat = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    warmup_steps: NonNegativeInt = 0
    decay_steps: PositiveInt | None = None
    """Steps of wsd's final decay. Left out: a tenth of `train.steps`."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate of a layer relative to the next one's (discriminative learning rates; arXiv:1801.06146
    takes 1/2.6)."""
    unfreeze_every: PositiveInt | None = None
    """Steps after which one more layer is trained, from the last to the first (gradual unfreezing, the same
    paper). Left out: all from the start."""
    distance_penalty: NonNegativeFloat = 0.0
    """Decoupled pull towards the weights that training started from, as weight decay pulls towards 0 (after
    arXiv:1802.01483)."""

    @property
    def min_lr_or_default(self) -> float:
        return self.lr / 10 if self.min_lr is None else self.min_lr


class ParallelSection(Section):
    tensor: PositiveInt = 1
    """Ranks that share each matrix."""
    pipeline: PositiveInt = 1
    """Stages that the layers are cut into."""
    context: PositiveInt = 1
    """Ranks that share each sequence. Above 1 comes with a later version."""
    expert: PositiveInt = 1
    """Ranks that share the experts. Above 1 comes with a later version."""
    sequence: bool = False
    """Split the activations between matrices along the sequence too, over the tensor ranks."""
    interleave: PositiveInt = 1
    """Model chunks a pipeline stage (interleaved 1F1B); 1 is plain 1F1B."""


class OffloadSection(Section):
    """DeepSpeed's offloading, passed on as it is."""

    optimizer: Literal["none", "cpu", "nvme"] = "none"
    parameters: Literal["none", "cpu", "nvme"] = "none"
    nvme_path: Path | None = None
    pin_memory: bool = True


class ZeroSection(Section):
    @classmethod
    def shorthand(cls) -> str:
        return "stage"

    stage: Literal[1, 2, 3] = 1
    """What is partitioned over data-parallel ranks: 1 optimizer, 2 and gradients, 3 and parameters."""
    offload: OffloadSection = OffloadSection()


class CheckpointSection(Section):
    every: PositiveInt | None = None
    """Steps between checkpoints. Left out: only at the end."""
    resume: Literal["auto", "required", "never"] = "auto"
    """auto: go on from the newest checkpoint if the run folder has one."""
    keep_last: PositiveInt = 2
    """Newest checkpoints that are kept."""
    keep_every: PositiveInt | None = None
    """Checkpoints whose step is a multiple of this are kept for good."""
    keep_best: bool = False
    """The one with the lowest validation loss is saved when it is found, and kept."""
    asynchronous: bool = True
    """Write behind training, which waits for one copy in memory only."""
    on_error: Literal["continue", "stop"] = "continue"
    """What a failed save does to training (the last save of a run always stops it)."""


class LoggingSection(Section):
    every: PositiveInt = 1
    """Steps between lines in `metrics.jsonl`."""
    progress: Literal["auto", "bar", "lines", "off"] = "auto"
    """auto: a live bar on a terminal, lines else."""
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online with a WANDB_API_KEY, offline else, off where wandb is not installed."""
    wandb_project: str = "llmscale"


class Config(Section):
    """A whole config file."""

    run: RunSection = RunSection()
    task: Literal["pretrain", "sft", "classify", "reward", "dpo", "rlhf"] = "pretrain"
    model: ModelSection = ModelSection()
    tokenizer: TokenizerSection = TokenizerSection()
    data: DataSection = DataSection()
    train: TrainSection = TrainSection()
    optimizer: OptimizerSection = OptimizerSection()
    sft: SftSection = SftSection()
    classify: ClassifySection = ClassifySection()
    preferences: PreferencesSection = PreferencesSection()
    reward: RewardSection = RewardSection()
    dpo: DpoSection = DpoSection()
    rlhf: RlhfSection = RlhfSection()
    peft: PeftSection = PeftSection()
    parallel: ParallelSection = ParallelSection()
    zero: ZeroSection = ZeroSection()
    checkpoint: CheckpointSection = CheckpointSection()
    cluster: ClusterSection = ClusterSection()
    logging: LoggingSection = LoggingSection()
    sweep: dict[str, list[Any]] = {}
    """Keys with values to try, `{optimizer.lr: [1e-3, 3e-4]}`: `submit` makes a run of each combination."""

    @property
    def world_size(self) -> int:
        return self.cluster.nodes * self.cluster.processes_per_node

    @property
    def data_parallel(self) -> int:
        """Model replicas: the world divided by tensor × pipeline × context (0 where it does not divide)."""
        model_ranks = self.parallel.tensor * self.parallel.pipeline * self.parallel.context
        return self.world_size // model_ranks if self.world_size % model_ranks == 0 else 0

    @property
    def has_partitions(self) -> bool:
        """ZeRO keeps masters and moments of its own, in partitions. It does not for ZeRO-1 of one replica in
        full precision: there the weights are their own masters, and nobody shares the work."""
        alone = self.data_parallel * self.parallel.context == 1
        is_plain = self.train.precision != "bf16" and self.zero.offload.optimizer == "none"
        return not (alone and is_plain and self.zero.stage == 1)

    @property
    def outputs(self) -> int | None:
        """Scores that the model gives of a text; None for a model that writes. 0 labels: the data tells."""
        if self.task == "reward":
            return 1
        if self.task != "classify":
            return None
        return 1 if self.classify.problem == "regression" else len(self.classify.labels)

    @property
    def has_reference(self) -> bool:
        """What is learned is measured against the model that the run started from."""
        of_task = {"dpo": self.dpo.has_reference, "rlhf": self.rlhf.has_kl}
        return of_task.get(self.task, False)

    @property
    def packing(self) -> bool:
        """Several examples share a row."""
        if self.task in ("reward", "dpo"):
            return self.preferences.packing
        return self.task == "sft" and self.sft.packing

    @property
    def run_folder(self) -> Path:
        return self.run.root / (self.run.name or "run")
