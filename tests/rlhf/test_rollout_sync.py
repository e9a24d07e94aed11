"""The weight stream: what arrives is what an export would write, or nothing."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llmscale.rlhf.rollout.buckets import Bucket, SyncFailed, arrived, dealt, digest_of, tensor_of
from llmscale.rlhf.rollout.sync import buckets, weight_shapes
from tests.ranks import run_ranks
from tests.rlhf.rollouts import GREEDY, actor, config_of, copy_of, native, requests, texts

MOST = 1 << 17
LORA = {"method": "lora", "rank": 4, "dropout": 0.0, "target_modules": ["q_proj", "v_proj", "down_proj"]}
DORA = {**LORA, "method": "dora"}
CASES: dict[str, dict[str, Any]] = {
    "tensor 2 pipeline 2": {"tensor": 2, "pipeline": 2},
    "zero 3": {"zero": 3, "data": 2},
    "tied, pipeline 2": {"tied": True, "pipeline": 2},
    "gpt2, tensor 2": {"family": "gpt2", "tensor": 2},
    "bf16, tensor 2": {"precision": "bf16", "tensor": 2},
    "lora, tensor 2": {"peft": LORA, "tensor": 2},
    "lora, zero 3": {"peft": LORA, "zero": 3, "data": 2},
    "dora, tensor 2 pipeline 2": {"peft": DORA, "tensor": 2, "pipeline": 2},
}
QUICK = ("tensor 2 pipeline 2", "zero 3", "lora, tensor 2", "gpt2, tensor 2")
ONE_RANK = ("tensor", "pipeline", "zero", "data")


def streamed(_rank: int, options: dict[str, Any]) -> tuple[list[Bucket | None], dict[str, Tensor]]:
    """What a rank gets of the stream; and its masters by name, which are whole on a single rank."""
    engine = actor(config_of(**options))
    found = list(buckets(engine, MOST))
    masters: dict[str, Tensor] = {}
    for piece in engine.weight_pieces():
        masters.setdefault(piece.name, torch.zeros(piece.shape))[piece.box.slices] = piece.data
    return found, masters


@pytest.mark.parametrize(
    "case", [name if name in QUICK else pytest.param(name, marks=pytest.mark.soak) for name in CASES]
)
def test_the_stream_is_the_model_whatever_its_layout(case: str) -> None:
    options = CASES[case]
    alone = {key: value for key, value in options.items() if key not in ONE_RANK}
    [(expected, masters)] = run_ranks(1, streamed, alone)
    ranks = run_ranks(config_of(**options).world_size, streamed, options)
    [spoken] = [found for found, _ in ranks if any(found)]
    assert [len(found) for found, _ in ranks] == [len(spoken)] * len(ranks), "all get as many"
    values, wanted = whole(spoken), whole(expected)
    assert list(values) == list(wanted)
    for name, tensor in values.items():
        if "dora" in case:  # magnitudes begin as norms, which tensor ranks sum up together
            torch.testing.assert_close(tensor, wanted[name], rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(tensor, wanted[name]), name
        if "peft" not in options:
            assert torch.equal(tensor, masters[name].to(tensor.dtype)), name
    assert len(spoken) > 3 and all(one is None or one.byte_count <= MOST or is_single(one) for one in spoken)


def is_single(bucket: Bucket) -> bool:
    return len(bucket.tensors) == 1


def whole(found: Iterable[Bucket | None]) -> dict[str, Tensor]:
    return {
        name: tensor_of(array, one.dtype) for one in found if one is not None for name, array in one.tensors
    }


def merged_and_not(_rank: int, method: str) -> Any:
    peft = {"lora": LORA, "dora": DORA}[method]
    engine, plain = actor(config_of(peft=peft)), actor(config_of())
    copy = copy_of(plain.config)
    copy.load_weights(0, (one for one in buckets(engine, MOST) if one is not None))
    asked = requests(6)
    return [
        [(list(one.tokens), list(one.log_probabilities)) for one in writer.generate(asked, GREEDY)]
        for writer in (native(engine), copy, native(plain))
    ]


@pytest.mark.parametrize("method", ["lora", pytest.param("dora", marks=pytest.mark.soak)])
def test_what_was_tuned_is_merged(method: str) -> None:
    ours, theirs, untuned = run_ranks(1, merged_and_not, method)[0]
    for (tokens, told), (copied, copied_told) in zip(ours, theirs, strict=True):
        assert tokens == copied
        assert told == pytest.approx(copied_told, abs=1e-4)
    assert [tokens for tokens, _ in ours] != [tokens for tokens, _ in untuned]


def after_faults(_rank: int) -> Any:
    """What is said of each fault, and what the copy writes before and after."""
    engine = actor(config_of())
    copy, asked = copy_of(engine.config), requests(3)
    good = [one for one in buckets(engine, MOST) if one is not None]
    copy.load_weights(0, good)
    before = texts(copy.generate(asked, GREEDY))
    later = [renewed(one, version=1, change=0.5) for one in good]
    said: dict[str, str] = {}
    for name, spoil in FAULTS.items():
        with pytest.raises(SyncFailed) as failed:
            copy.load_weights(1, spoil(later))
        said[name] = str(failed.value)
    assert copy.version == 0 and texts(copy.generate(asked, GREEDY)) == before
    copy.load_weights(1, later)
    return said, copy.version, texts(copy.generate(asked, GREEDY)) != before


def renewed(bucket: Bucket, version: int, change: float = 0.0, **other: Any) -> Bucket:
    tensors = tuple((name, array + np.float32(change)) for name, array in bucket.tensors)
    tensors = other.pop("tensors", tensors)
    return replace(bucket, version=version, tensors=tensors, digest=digest_of(tensors, bucket.dtype), **other)


def with_first(later: list[Bucket], name: str | None = None, rows: int | None = None) -> list[Bucket]:
    (old, array), *rest = later[0].tensors
    tensors = ((name or old, array[:rows]), *rest)
    return [renewed(later[0], 1, tensors=tensors), *later[1:]]


FAULTS: dict[str, Callable[[list[Bucket]], list[Bucket]]] = {
    "missing at the end": lambda later: later[:-1],
    "nothing": lambda later: [],
    "missing in the middle": lambda later: [*later[:1], *later[2:]],
    "changed": lambda later: [replace(later[0], tensors=renewed(later[0], 1, 1.0).tensors), *later[1:]],
    "of another version": lambda later: [*later[:-1], replace(later[-1], version=2)],
    "of another model": lambda later: with_first(later, name="model.stranger"),
    "too few rows": lambda later: with_first(later, rows=5),
    "twice": lambda later: [later[0], renewed(later[0], 1, number=1), *later[2:]],
}


def test_a_damaged_or_incomplete_sync_leaves_the_old_weights() -> None:
    said, version, changed = run_ranks(1, after_faults)[0]
    first = "model.embed_tokens.weight"
    assert {name: message.split(": ")[0] for name, message in said.items()} == {
        "missing at the end": "5 tensors have not come",
        "nothing": "39 tensors have not come",
        "missing in the middle": "bucket 2 of 6 came where 1 was next",
        "changed": "bucket 0 has other values than were sent",
        "of another version": "weights of version 2 came in the middle of 1",
        "of another model": "model.stranger is no tensor of this model",
        "too few rows": f"{first} has the shape (5, 64) where (1000, 64) is needed",
        "twice": f"{first} came twice",
    }
    assert (version, changed) == (1, True)


def test_the_first_sync_compares_what_the_model_holds() -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}
    sent = [Bucket.of(4, place, 2, [pair], torch.float32) for place, pair in enumerate(tensors.items())]
    found = arrived(sent, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, 4)
    found.check(tensors)
    with pytest.raises(SyncFailed, match="does not hold what was sent: b"):
        found.check(tensors | {"b": torch.tensor([1.0, 1.5])})


def test_lots_are_full_and_none_is_too_large() -> None:
    shapes = {"a": (4,), "b": (4,), "c": (100,), "d": (1,), "e": ()}
    assert dealt(shapes, torch.float32, 32) == [["a", "b"], ["c"], ["d", "e"]]
    assert dealt(shapes, torch.bfloat16, 16) == [["a", "b"], ["c"], ["d", "e"]]


def test_bfloat16_travels_as_bits() -> None:
    tensor = torch.randn(3, 5).bfloat16()
    [(_, array)] = Bucket.of(0, 0, 1, [("w", tensor)], torch.bfloat16).tensors
    assert array.dtype == np.uint16
    assert torch.equal(tensor_of(array, "bfloat16"), tensor)


def stream_of_adapters(_rank: int) -> int:
    engine = actor(config_of(peft={"method": "adapter"}))
    with pytest.raises(ValueError, match="no weights of the model can do that"):
        next(iter(buckets(engine)))
    return len(weight_shapes(engine))


def test_adapters_are_refused_by_the_stream() -> None:
    assert run_ranks(1, stream_of_adapters) == [39]
