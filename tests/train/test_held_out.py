"""What validation reads: each sample once at most, and text that nothing is trained on."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from llmscale.config.checks import check_config
from llmscale.config.problems import InputError
from llmscale.config.schema import Config
from llmscale.data.batch import Batch
from llmscale.data.blend import ShuffledCorpus
from llmscale.data.checks import check_data
from llmscale.data.examples import Example, write_examples
from llmscale.data.loader import BatchSource
from llmscale.run.examples import training_blend
from llmscale.run.forgetting import forgetting_source
from tests.data.corpora import config_with, write_corpus

LENGTH = 32


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


def labels_that_count(batches: list[Batch]) -> Counter[int]:
    return Counter(
        label for batch in batches for label in batch.labels_BS[batch.loss_mask_BS.bool()].tolist()
    )


@pytest.mark.parametrize(("replicas", "rows"), [(1, 1), (2, 2), (4, 2)])
def test_a_pass_reads_each_sample_once(corpus: Path, replicas: int, rows: int) -> None:
    """The last global batch is filled with rows that do not count, however ranks share it out."""
    train: dict[str, object] = {"micro_batch_size": rows, "global_batch_size": 8}
    config = config_with([(corpus, 1)], data={"split": [0.7, 0.3, 0]}, train=train)
    single = config_with([(corpus, 1)], data={"split": [0.7, 0.3, 0]}, train={"global_batch_size": 1})
    with BatchSource(single, "validation", 0, 1) as source:
        samples = source.samples_per_epoch
        once = labels_that_count([b for n in range(samples) for b in source.step_batches(n, 1)])
    found: Counter[int] = Counter()
    assert samples % 8, "nothing would have to be filled"
    for replica in range(replicas):
        with BatchSource(config, "validation", replica, replicas) as source:
            for step in range(-(-samples // 8)):
                batches = source.step_batches(8 * step, 8)
                assert len(batches) == 8 // (rows * replicas)
                found += labels_that_count(batches)
    assert found == once


def test_a_small_corpus_of_a_blend_does_not_come_twice(tmp_path: Path) -> None:
    """By weight it would come more often than it has samples."""
    small, large = write_corpus(tmp_path / "small", documents=6), write_corpus(tmp_path / "large", seed=1)
    validation = [{"path": str(small), "weight": 9.0}, {"path": str(large), "weight": 1.0}]
    config = config_with([(large, 1)], data={"validation": validation})
    with BatchSource(config, "validation", 0, 1) as source:
        steps = -(-source.samples_per_epoch // 8)
        places = [
            (place.corpus, place.sample)
            for step in range(steps)
            for row, batch in zip(source.sample_ids(8 * step, 8), source.step_batches(8 * step, 8))
            for place in row
            if batch.loss_mask_BS.any()
        ]
    assert len(places) == len(set(places))
    assert {place for place in places if place[0] == 0} == {
        (0, sample) for sample in range(source.blend.corpora[0].samples_per_epoch)
    }


def tuning_config(corpus: Path, share: float = 0.25) -> Config:
    return Config.model_validate(
        {
            "task": "sft",
            "model": {"vocabulary_size": 1000},
            "train": {"sequence_length": LENGTH, "global_batch_size": 8, "validate_every": 5},
            "data": {
                "train": [{"path": "questions.jsonl"}],
                "validation": [{"path": "answers.jsonl"}],
                "split": [0.9, 0.1, 0.0],
                "replay": {"corpus": {"path": str(corpus)}, "share": share},
                "forgetting": [{"path": str(corpus)}],
            },
        }
    )


def write_made_up_examples(folder: Path) -> None:
    generator = np.random.default_rng(1)
    lengths = generator.integers(4, LENGTH, 60)
    examples = [
        Example(generator.integers(0, 1000, length).astype(np.int32), np.ones(length, bool))
        for length in lengths
    ]
    write_examples(examples, folder / "train-0", {})


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5])
def test_replay_has_its_share_of_the_rows(corpus: Path, tmp_path: Path, share: float) -> None:
    write_made_up_examples(tmp_path)
    blend = training_blend(tuning_config(corpus, share), tmp_path)
    corpora = [blend.locate(number).corpus for number in range(1000)]
    for rows in (100, 400, 1000):
        assert abs(sum(corpora[:rows]) - share * rows) <= 1


def test_a_row_does_not_depend_on_those_before(corpus: Path, tmp_path: Path) -> None:
    """So a resumed run reads what an undisturbed one would."""
    write_made_up_examples(tmp_path)
    config = tuning_config(corpus)
    whole = [training_blend(config, tmp_path).sample(number) for number in range(200)]
    resumed = training_blend(config, tmp_path)
    for number in (150, 3, 199, 77):
        assert torch.equal(resumed.sample(number).tokens_S, whole[number].tokens_S)
        assert resumed.sample(number).document_lengths == whole[number].document_lengths


def test_nothing_that_is_replayed_tells_of_forgetting(corpus: Path, tmp_path: Path) -> None:
    write_made_up_examples(tmp_path)
    config = tuning_config(corpus)
    replayed = training_blend(config, tmp_path).corpora[1]
    source = forgetting_source(config, 0, 1)
    assert source is not None and isinstance(replayed, ShuffledCorpus)
    with source:
        (known,) = source.blend.corpora
        assert isinstance(known, ShuffledCorpus)
        assert len(known.documents) == 20 and len(replayed.documents) == 180
        assert not set(known.documents.tolist()) & set(replayed.documents.tolist())


def problems_of(corpus: Path, **changes: object) -> list[str]:
    sections = {
        "model": {"vocabulary_size": 1000},
        "train": {"sequence_length": LENGTH, "validate_every": 2},
        "data": {"train": [{"path": str(corpus)}], "forgetting": [{"path": str(corpus)}], **changes},
    }
    config = Config.model_validate(sections)
    return [problem.key for problem in [*check_config(config), *check_data(config)]]


def test_text_that_cannot_tell_is_refused(corpus: Path, tmp_path: Path) -> None:
    assert problems_of(corpus) == []
    missing = str(tmp_path / "gone")
    assert problems_of(corpus, forgetting=[{"path": missing}]) == ["data.forgetting.0.path"]
    other = str(write_corpus(tmp_path / "other", seed=3))
    named = [{"path": other}]
    assert problems_of(corpus, validation=named) == ["data.forgetting.0.path"], "it is trained on whole"
    assert problems_of(corpus, validation=named, forgetting=named) == []
    without = problems_of(corpus, split=[1.0, 0.0, 0.0], validation=named, forgetting=named)
    assert without == ["data.split", "data.forgetting.0.path"]


def test_a_corpus_that_goes_missing_later_is_named(corpus: Path, tmp_path: Path) -> None:
    config = tuning_config(tmp_path / "gone")
    with pytest.raises(InputError, match=r"data\.forgetting\.0\.path"):
        forgetting_source(config, 0, 1)
