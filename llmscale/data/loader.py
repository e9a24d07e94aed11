"""A rank's microbatches for a step, read ahead of training.

The position is one number, the samples consumed so far. Ranks that share a data-parallel rank
(tensor and pipeline neighbours) read the same batches.
"""

import math
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

from llmscale.config.problems import InputError, Problem
from llmscale.config.schema import Config
from llmscale.data.batch import Batch
from llmscale.data.batch_size import global_batch_size_at
from llmscale.data.blend import Blend, SampleId, ShuffledCorpus
from llmscale.data.corpus import CorpusDamaged, documents_of_split, entries_of_split, read_index
from llmscale.data.row import LENGTH_UNIT, Row, batch_of, by_length, empty_row, shortened

SplitName = Literal["train", "validation", "test"]
StepKey = tuple[int, int]
"""(consumed samples, global batch size): all that a step's batches depend on."""

VALIDATION_SEED = "0"
"""Validation and test read the same samples whatever `train.seed` is, so that runs compare."""


class BatchSource:
    """Batches of one split for one data-parallel rank.

    Microbatch m of replica r holds in row j the sample
    `consumed + (m * data_parallel_size + r) * micro_batch_size + j`, so a step reads the same samples
    under every number of replicas and every micro batch size. Where rows are padded, a replica's rows of a
    step are dealt to its microbatches by their length instead.

    Training samples go on for ever, epoch after epoch. Of validation no sample comes twice: where the
    samples of a corpus are at an end, rows in which nothing counts stand for them; its last sample may be
    partly masked.

    Args:
        blend: what to read in place of the split's tokenised corpora.
    """

    def __init__(
        self,
        config: Config,
        split: SplitName,
        data_parallel_rank: int,
        data_parallel_size: int,
        blend: Blend | None = None,
    ) -> None:
        self.train = config.train
        self.split = split
        self.rank = data_parallel_rank
        self.replicas = data_parallel_size
        self.prefetch = config.data.prefetch
        self.blend = blend or open_blend(config, split)
        self.stages = config.parallel.pipeline
        self.unit = math.lcm(LENGTH_UNIT, config.parallel.tensor) if config.task != "pretrain" else None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix=f"read-{split}")
        self._ahead: dict[StepKey, Future[list[Batch]]] = {}

    @property
    def samples_per_epoch(self) -> int:
        """Samples of all corpora, each read once."""
        return sum(corpus.samples_per_epoch for corpus in self.blend.corpora)

    def step_batches(self, consumed_samples: int, global_batch_size: int) -> list[Batch]:
        """This rank's microbatches of the step that follows `consumed_samples` samples.

        The next `data.prefetch` steps are then read in the background. An error of the reader is
        raised here, in the step that it concerns.
        """
        if not self.prefetch:
            return self._read(consumed_samples, global_batch_size)
        wanted = (consumed_samples, global_batch_size)
        steps = [wanted]
        for _ in range(self.prefetch):
            steps.append(self._step_after(steps[-1]))
        for stale in self._ahead.keys() - set(steps):
            self._ahead.pop(stale).cancel()
        for step in steps:
            if step not in self._ahead:
                self._ahead[step] = self._reader.submit(self._read, *step)
        return self._ahead.pop(wanted).result()

    def sample_ids(self, consumed_samples: int, global_batch_size: int) -> list[list[SampleId]]:
        """What `step_batches` would read: a list a microbatch, an entry a row."""
        return [
            [self.blend.locate(number) for number in numbers]
            for numbers in self._sample_numbers(consumed_samples, global_batch_size)
        ]

    def close(self) -> None:
        """Stop reading ahead; waits for the read in progress."""
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._ahead.clear()

    def __enter__(self) -> "BatchSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _step_after(self, step: StepKey) -> StepKey:
        consumed = sum(step)
        return consumed, global_batch_size_at(self.train, consumed) if self.split == "train" else step[1]

    def _sample_numbers(self, consumed_samples: int, global_batch_size: int) -> list[range]:
        rows = self.train.micro_batch_size
        microbatches, rest = divmod(global_batch_size, rows * self.replicas)
        if rest:
            raise ValueError(
                f"global batch size {global_batch_size} is no multiple of micro_batch_size × replicas = "
                f"{rows} × {self.replicas}"
            )
        starts = [consumed_samples + (m * self.replicas + self.rank) * rows for m in range(microbatches)]
        return [range(start, start + rows) for start in starts]

    def _read(self, consumed_samples: int, global_batch_size: int) -> list[Batch]:
        microbatches = [
            [self._row(number) for number in numbers]
            for numbers in self._sample_numbers(consumed_samples, global_batch_size)
        ]
        if self.unit is not None:
            microbatches = self._with_little_padding(microbatches, self.unit)
        return [batch_of(rows) for rows in microbatches]

    def _with_little_padding(self, microbatches: list[list[Row]], unit: int) -> list[list[Row]]:
        rows = [row for microbatch in microbatches for row in microbatch]
        if self.stages > 1:  # whose schedule needs all microbatches of a step to be of one length
            return by_length(shortened(rows, unit), self.train.micro_batch_size)
        return [shortened(part, unit) for part in by_length(rows, self.train.micro_batch_size)]

    def _row(self, number: int) -> Row:
        if self.split != "train" and self.blend.locate(number).epoch:
            return empty_row(self.train.sequence_length)
        return self.blend.sample(number)


def open_blend(config: Config, split: SplitName) -> Blend:
    """The corpora of `split`, blended.

    Raises:
        InputError: for corpora that are damaged or have no sample in this split.
    """
    corpora: list[ShuffledCorpus] = []
    weights: list[float] = []
    problems: list[Problem] = []
    section = "validation" if split == "validation" and config.data.validation else "train"
    seed = str(config.train.seed) if split == "train" else VALIDATION_SEED
    for place, entry in enumerate(entries_of_split(config.data, split)):
        key = f"data.{section}.{place}.path"
        try:
            lengths = read_index(entry.path).lengths
            documents = documents_of_split(len(lengths), config.data, split)
            # The place is in the seed: a corpus that is listed twice gives two orders.
            order = f"{seed}/{split}/{place}"
            corpora.append(
                ShuffledCorpus(
                    entry.path, documents, config.train.sequence_length, order, keep_rest=split != "train"
                )
            )
            weights.append(entry.weight)
        except CorpusDamaged as error:
            problems.append(Problem(key, entry.path, str(error)))
        except ValueError as error:
            problems.append(Problem(key, entry.path, f"the {split} split of it {error}"))
    if problems or not corpora:
        raise InputError(
            problems or [Problem(f"data.{section}", [], f"names no corpus for the {split} split")]
        )
    return Blend(corpora, weights)
