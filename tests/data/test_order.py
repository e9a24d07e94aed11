"""The order of samples: what it depends on, and what it must not."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from llmscale.config.problems import InputError
from llmscale.config.schema import Config
from llmscale.data.batch_size import global_batch_size_at
from llmscale.data.blend import ShuffledCorpus
from llmscale.data.corpus import corpus_file, documents_of_split
from llmscale.data.loader import BatchSource, open_blend
from tests.data.corpora import config_with, write_corpus


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("corpora")
    return [
        write_corpus(folder / "a", documents=200, seed=0),
        write_corpus(folder / "b.v1", documents=60, seed=1, first=300),
        write_corpus(folder / "c", documents=40, seed=2, first=600),
    ]


def blended(corpora: list[Path], **sections: dict[str, object]) -> Config:
    return config_with(list(zip(corpora, (5.0, 2.0, 0.7))), **sections)


def rows_of_step(config: Config, replicas: int, consumed: int, size: int) -> torch.Tensor:
    """All replicas' rows of a step in the order of their sample numbers, [global batch, sequence]."""
    of_replica = []
    for rank in range(replicas):
        with BatchSource(config, "train", rank, replicas) as source:
            of_replica.append(source.step_batches(consumed, size))
    return torch.cat([batch.tokens_BS for microbatch in zip(*of_replica) for batch in microbatch])


@pytest.mark.parametrize(
    "replicas, micro_batch_size, steps", [(1, 1, 500), (2, 1, 1200), (4, 1, 500), (2, 4, 500), (1, 8, 1200)]
)
def test_a_step_reads_the_same_samples_under_every_layout(
    corpora: list[Path], replicas: int, micro_batch_size: int, steps: int
):
    plain = blended(corpora, train={"steps": 500})
    config = blended(corpora, train={"steps": steps, "micro_batch_size": micro_batch_size})
    for consumed in (0, 24, 4000):
        expected = torch.stack([open_blend(plain, "train").sample(consumed + i).tokens_S for i in range(8)])
        assert torch.equal(rows_of_step(config, replicas, consumed, 8), expected)


def test_the_batch_size_does_not_change_the_order(corpora: list[Path]):
    config = blended(corpora)
    small = torch.cat([rows_of_step(config, 1, consumed, 4) for consumed in (0, 4, 8, 12)])
    assert torch.equal(small, rows_of_step(config, 1, 0, 16))


FIRST_TOKENS = [198, 190, 448, 982, 458, 674, 204, 391, 291, 397, 706, 123]


def test_the_order_stays_what_it_was(corpora: list[Path]):
    """A run that is resumed by a later version must go on with the samples that come next."""
    blend = open_blend(blended(corpora), "train")
    first = [int(blend.sample(number).tokens_S[0]) for number in range(12)]
    assert first == FIRST_TOKENS


def test_seed_changes_the_order(corpora: list[Path]):
    assert not torch.equal(
        rows_of_step(blended(corpora, train={"seed": 1}), 1, 0, 8),
        rows_of_step(blended(corpora, train={"seed": 2}), 1, 0, 8),
    )


def test_batches_are_shifted_by_one_and_all_count(corpora: list[Path]):
    with BatchSource(blended(corpora, train={"micro_batch_size": 4}), "train", 0, 1) as source:
        batches = source.step_batches(0, 8)
    assert len(batches) == 2
    for batch in batches:
        assert batch.tokens_BS.shape == (4, 32)
        assert batch.tokens_BS.dtype == batch.labels_BS.dtype == batch.position_ids_BS.dtype == torch.int64
        assert torch.equal(batch.tokens_BS[:, 1:], batch.labels_BS[:, :-1])
        assert batch.loss_mask_BS.dtype == torch.float32 and bool((batch.loss_mask_BS == 1).all())
        assert torch.equal(batch.position_ids_BS, torch.arange(32).expand(4, 32))


def corpus_tokens(path: Path, documents: np.ndarray) -> Counter[int]:
    """How often each token stands in `documents`."""
    tokens = np.fromfile(corpus_file(path, ".bin"), np.uint16)
    index = corpus_file(path, ".idx").read_bytes()
    count = int.from_bytes(index[18:26], "little")
    lengths = np.frombuffer(index, np.int32, count, 34)
    ends = np.cumsum(lengths)
    return Counter(int(t) for d in documents for t in tokens[ends[d] - lengths[d] : ends[d]])


def test_an_epoch_reads_each_token_at_most_once_and_epochs_differ(corpora: list[Path]):
    documents = np.arange(200, dtype=np.int32)
    corpus = ShuffledCorpus(corpora[0], documents, 32, "seed")
    epochs = [
        torch.stack([corpus.sample(epoch, place).labels_S for place in range(corpus.samples_per_epoch)])
        for epoch in (0, 1, 0)
    ]
    available = corpus_tokens(corpora[0], documents)
    for epoch in epochs:
        read = Counter(epoch.flatten().tolist())
        assert not read - available
        assert sum(available.values()) - sum(read.values()) <= 32
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])


def test_weights_are_kept_at_every_moment(corpora: list[Path]):
    config = blended(corpora)
    blend = open_blend(config, "train")
    counts = np.zeros(3)
    for number in range(3000):
        place = blend.locate(number)
        corpus = blend.corpora[place.corpus]
        assert place.epoch * corpus.samples_per_epoch + place.sample == counts[place.corpus]
        counts[place.corpus] += 1
        assert np.abs(counts - blend.weights * (number + 1)).max() <= 1


def test_a_blend_grows_without_changing_what_was_picked(corpora: list[Path]):
    blend = open_blend(blended(corpora), "train")
    before = [blend.locate(number) for number in range(0, 60_000, 101)]
    blend.locate(400_000)
    assert [blend.locate(number) for number in range(0, 60_000, 101)] == before


def test_splits_share_out_all_documents():
    data = config_with([(Path("a"), 1)], data={"split": [0.9, 0.06, 0.04]}).data
    parts = [documents_of_split(1000, data, split) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [900, 60, 40]
    assert sorted(np.concatenate(parts)) == list(range(1000))


def test_validation_reads_every_token_once(corpora: list[Path]):
    config = config_with([(corpora[0], 1)], data={"split": [0.7, 0.3, 0]})
    documents = documents_of_split(200, config.data, "validation")
    available = corpus_tokens(corpora[0], documents)
    labels: Counter[int] = Counter()
    tokens: Counter[int] = Counter()
    with BatchSource(config, "validation", 0, 1) as source:
        for consumed in range(source.samples_per_epoch):
            (batch,) = source.step_batches(consumed, 1)
            counts = batch.loss_mask_BS[0].bool()
            labels.update(batch.labels_BS[0, counts].tolist())
            tokens.update(batch.tokens_BS[0, counts].tolist())
    assert source.samples_per_epoch == -(-(sum(available.values()) - 1) // 32)
    # Every token is a label but the first, and is read but the last.
    assert sum((available - labels).values()) == 1 and not labels - available
    assert sum((available - tokens).values()) == 1 and not tokens - available


def test_validation_is_the_same_for_every_seed(corpora: list[Path]):
    def validation(seed: int) -> torch.Tensor:
        config = config_with([(corpora[0], 1)], train={"seed": seed}, data={"split": [0.9, 0.1, 0]})
        with BatchSource(config, "validation", 0, 1) as source:
            return torch.cat([batch.tokens_BS for batch in source.step_batches(0, 4)])

    assert torch.equal(validation(1), validation(2))


def test_a_validation_split_shorter_than_a_sequence_is_one_masked_sample(tmp_path: Path):
    path = write_corpus(tmp_path / "short", documents=40)
    config = config_with(
        [(path, 1)], data={"split": [0.95, 0.05, 0]}, train={"sequence_length": 400, "global_batch_size": 1}
    )
    available = corpus_tokens(path, documents_of_split(40, config.data, "validation"))
    with BatchSource(config, "validation", 0, 1) as source:
        assert source.samples_per_epoch == 1
        (batch,) = source.step_batches(0, 1)
    assert int(batch.loss_mask_BS.sum()) == sum(available.values()) - 1


def test_an_empty_split_is_refused(corpora: list[Path]):
    with pytest.raises(InputError, match="validation split of it has 0 tokens"):
        BatchSource(config_with([(corpora[0], 1)], data={"split": [1, 0, 0]}), "validation", 0, 1)


def warm_up(steps: int) -> Config:
    warmup = {"start": 2, "increment": 2, "samples": 60}
    return config_with(
        [(Path("a"), 1)], train={"steps": steps, "global_batch_size": 8, "batch_warmup": warmup}
    )


def test_batch_size_grows_in_equal_stages():
    train = warm_up(10).train
    sizes = [global_batch_size_at(train, consumed) for consumed in range(100)]
    assert sizes == [2] * 20 + [4] * 20 + [6] * 20 + [8] * 40
    assert global_batch_size_at(config_with([(Path("a"), 1)]).train, 0) == 8


def test_sample_ids_under_batch_warm_up_are_one_unbroken_row(corpora: list[Path]):
    config = warm_up(10).model_copy(update={"data": config_with([(corpora[0], 1)]).data})
    seen: list[int] = []
    with BatchSource(config, "train", 0, 1) as source:
        consumed = 0
        while consumed < 150:
            size = global_batch_size_at(config.train, consumed)
            ids = source.sample_ids(consumed, size)
            batches = source.step_batches(consumed, size)
            assert len(batches) == len(ids) == size
            seen += [place.sample for microbatch in ids for place in microbatch]
            consumed += size
    assert seen == list(range(consumed))


def test_reading_ahead_changes_nothing_and_errors_surface(
    corpora: list[Path], monkeypatch: pytest.MonkeyPatch
):
    ahead = BatchSource(blended(corpora, data={"prefetch": 3}), "train", 0, 2)
    plain = BatchSource(blended(corpora, data={"prefetch": 0}), "train", 0, 2)
    for consumed in (0, 8, 16, 400, 408, 8):
        for left, right in zip(ahead.step_batches(consumed, 8), plain.step_batches(consumed, 8)):
            assert torch.equal(left.tokens_BS, right.tokens_BS)
    with pytest.raises(ValueError, match="no multiple"):
        ahead.step_batches(0, 7)

    def fail(number: int) -> None:
        raise OSError(f"disk gone at {number}")

    monkeypatch.setattr(ahead.blend, "sample", fail)
    with pytest.raises(OSError, match="disk gone at 8000"):
        ahead.step_batches(8000, 8)
    ahead.close()
    with pytest.raises(RuntimeError):
        ahead.step_batches(0, 8)
