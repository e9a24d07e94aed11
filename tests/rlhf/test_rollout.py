"""Rollout engines: who writes is not seen in what is written."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from llmscale.config.rlhf_pools import RolloutSection
from llmscale.engine.engine import Engine
from llmscale.objectives.rl.told import token_figures
from llmscale.rlhf.experience import Experience
from llmscale.rlhf.rollout.buckets import SyncFailed
from llmscale.rlhf.rollout.engine import Request, Written
from llmscale.rlhf.rollout.sync import buckets
from llmscale.rlhf.rows import pack
from tests.ranks import run_ranks
from tests.rlhf.rollouts import GREEDY, LAYOUTS, SAMPLED, actor, config_of, copy_of, native, requests, texts

CUT = SAMPLED.model_copy(update={"top_k": 50, "top_p": 0.9})


def by_both(_rank: int, family: str) -> list[tuple[list[Written], list[Written]]]:
    engine = actor(config_of(family=family))
    theirs = copy_of(engine.config)
    theirs.load_weights(engine.steps_done, (one for one in buckets(engine, 1 << 18) if one is not None))
    asked = requests(7)
    return [
        (native(engine).generate(asked, options), theirs.generate(asked, options))
        for options in (GREEDY, SAMPLED, CUT)
    ]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_transformers_writes_what_the_actor_writes(family: str) -> None:
    ends: set[bool] = set()
    tokens: set[int] = set()
    for ours, theirs in run_ranks(1, by_both, family)[0]:
        assert texts(ours) == texts(theirs)
        assert [one.finished for one in ours] == [one.finished for one in theirs]
        for one, other in zip(ours, theirs):
            assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-4)
        tokens |= {token for text in texts(ours) for token in text}
        ends |= {one.finished for one in ours}
    assert len(tokens) > 50 and len(ends) == 2, "texts should wander, and only some end by themselves"


def in_batches(_rank: int) -> tuple[list[list[list[int]]], list[list[int]]]:
    writer, asked = native(actor(config_of())), requests(11)
    together = [
        texts(writer.generate(asked, SAMPLED.model_copy(update={"batch": batch}))) for batch in (1, 3, 11, 64)
    ]
    return together, texts(writer.generate(asked[::-1], SAMPLED))[::-1]


def test_retirement_refilling_and_order_change_no_text() -> None:
    (alone, *together), turned = run_ranks(1, in_batches)[0]
    assert len({len(text) for text in alone}) > 3, "texts of one length would all end at once"
    assert [*together, turned] == [alone] * 4


def seeds_apart(_rank: int) -> list[list[int]]:
    asked = requests(2)
    same = [replace(asked[0], seed=seed) for seed in (1, 2, 1)]
    return texts(native(actor(config_of())).generate(same, SAMPLED))


def test_the_seed_alone_makes_answers_to_a_prompt_differ() -> None:
    first, second, third = run_ranks(1, seeds_apart)[0]
    assert first == third != second


def told_by_the_trainer(
    engine: Engine, asked: list[Request], written: list[Written], temperature: float
) -> list[list[float]]:
    experiences: list[Experience] = []
    for request, answer in zip(asked, written):
        tokens = torch.tensor([*request.tokens, *answer.tokens], dtype=torch.int32).numpy()
        learned = torch.arange(len(tokens)).numpy() >= len(request.tokens)
        experiences.append(Experience(tokens, learned, 0, 0, 0, answer.finished))
    packed = pack(experiences, 64, 2, engine.world, engine.config.peft.placeholders)

    def tell(chunk: Any, output: torch.Tensor, batch: Any) -> torch.Tensor:
        return token_figures(chunk, output, batch, temperature).log_probabilities_BS

    told = engine.ask(packed.batches, tell)
    if not engine.world.is_last_stage:
        return []
    return [
        found[len(request.tokens) :].tolist() for request, found in zip(asked, packed.of_experiences(told))
    ]


def both_log_probabilities(_rank: int, options: dict[str, Any]) -> list[Any]:
    engine = actor(config_of(**options))
    writer, asked = native(engine), requests(6)
    found: list[Any] = []
    for section in (SAMPLED, RolloutSection(batch=4), CUT):
        written = writer.generate(asked, section)
        told = told_by_the_trainer(engine, asked, written, section.temperature)
        found.append((texts(written), [list(one.log_probabilities) for one in written], told))
    return found


KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {"family": "gpt2"},
    "qwen3": {"family": "qwen3"},
    "window": {"family": "mistral"},
    "lora": {"peft": {"method": "lora", "rank": 4, "dropout": 0.0}},
    "dora": {"peft": {"method": "dora", "rank": 4, "dropout": 0.0}},
    "adapter": {"peft": {"method": "adapter"}},
    "prefix": {"peft": {"method": "prefix_tuning", "virtual_tokens": 3}},
    "prefix before a window": {
        "family": "mistral",
        "peft": {"method": "prefix_tuning", "virtual_tokens": 3},
    },
    "prompt": {"peft": {"method": "prompt_tuning", "virtual_tokens": 3}},
}


def log_probabilities_of_kinds(rank: int) -> dict[str, Any]:
    return {name: both_log_probabilities(rank, options)[0] for name, options in KINDS.items()}


def test_every_family_and_tuning_is_written_as_it_is_trained() -> None:
    [found] = run_ranks(1, log_probabilities_of_kinds)
    for name, (_, drawn, told) in found.items():
        for ours, theirs in zip(drawn, told, strict=True):
            assert ours == pytest.approx(theirs, abs=3e-5), name
    assert len({str(written) for written, _, _ in found.values()}) == len(KINDS)


@cache
def alone() -> list[Any]:
    return run_ranks(1, both_log_probabilities, {})[0]


@pytest.mark.parametrize("layout", ["alone", *LAYOUTS])
def test_log_probabilities_are_those_of_the_trainer(layout: str) -> None:
    options = LAYOUTS.get(layout, {})
    count = config_of(**options).world_size
    ranks = run_ranks(count, both_log_probabilities, options) if count > 1 else [alone()]
    compared = 0
    for rank in ranks:
        for (written, drawn, told), (expected, _, _) in zip(rank, alone(), strict=True):
            assert written == expected, "another layout writes something else"
            for ours, theirs in zip(drawn, told):
                assert ours == pytest.approx(theirs, abs=1e-5)
                assert min(theirs) < -0.1
                compared += len(theirs)
    assert compared > 200


def test_what_cannot_be_asked_of_an_engine_is_refused() -> None:
    assert run_ranks(1, refusals)[0] == [
        "the native engine writes with the actor's own weights, and takes no others",
        "no weights have come yet",
        "the rollout engine sleeps",
    ]


def refusals(_rank: int) -> list[str]:
    engine = actor(config_of())
    copy, found = copy_of(engine.config), list[str]()
    with pytest.raises(SyncFailed) as failed:
        native(engine).load_weights(0, [])
    found.append(str(failed.value))
    with pytest.raises(RuntimeError) as refused:
        copy.generate(requests(1), GREEDY)
    found.append(str(refused.value))
    copy.load_weights(3, (replace(one, version=3) for one in buckets(engine) if one is not None))
    before = texts(copy.generate(requests(2), GREEDY))
    copy.sleep()
    with pytest.raises(RuntimeError) as refused:
        copy.generate(requests(1), GREEDY)
    found.append(str(refused.value))
    copy.wake()
    again = copy.generate(requests(2), GREEDY)
    assert texts(again) == before and [one.version for one in again] == [3, 3]
    return found
