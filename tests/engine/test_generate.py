"""Generation: the cache against full forwards and transformers, layouts, batches, sampling."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from llmscale.config.schema import ModelSection, TrainSection
from llmscale.engine.generate import Generator
from llmscale.engine.sampling import SamplingOptions, draw, probabilities, uniform
from llmscale.model.build import build_model
from llmscale.model.linear import ColumnParallelLinear
from llmscale.model.weights import weights_to_fill
from llmscale.parallel.layout import Layout
from llmscale.parallel.world import World
from tests.ranks import run_ranks

VOCABULARY = 101
POSITIONS = 48
FAMILIES = ("llama", "qwen3", "gpt2", "mistral")
PROMPTS = [[7, 99, 3, 42, 58, 1, 20, 77, 5], [13], [64, 2, 90, 11], [30, 31, 32, 33, 34, 35]]
GREEDY = SamplingOptions(max_new_tokens=20, temperature=0)
SAMPLED = SamplingOptions(max_new_tokens=20, temperature=0.9, top_k=40, top_p=0.95, seed=5)


def model_section(family: str) -> ModelSection:
    return ModelSection.model_validate(
        {
            "family": family,
            "hidden_size": 64,
            "layers": 4,
            "heads": 4,
            "kv_heads": 4 if family == "gpt2" else 2,
            "ffn_size": 96,
            "max_positions": POSITIONS,
            "sliding_window": 6 if family == "mistral" else None,
            # Weights large enough that texts wander instead of repeating one token.
            "initializer_range": 0.2,
        }
    )


def build(family: str, layout: Layout | None = None) -> Generator:
    world = World(layout or Layout(), torch.device("cpu"))
    with world.active():
        chunks = build_model(model_section(family), TrainSection(precision="fp32"), VOCABULARY, world)
    for chunk in chunks:
        stir(dict(chunk.named_parameters()), ("linear_proj.weight", "linear_fc2.weight"))
    return Generator(chunks, world)


@torch.no_grad()
def stir(weights: dict[str, torch.Tensor], outputs: tuple[str, ...]) -> None:
    """Let layers outweigh embeddings: a fresh tied model would say its last token again for ever."""
    for name, weight in weights.items():
        if name.endswith(outputs):
            weight.mul_(8)


def full_forward_greedy(generator: Generator, prompt: list[int], count: int) -> list[int]:
    """Without a cache: the whole text through the model for every token."""
    tokens, chunk = list(prompt), generator.chunks[0].eval()
    for _ in range(count):
        positions_BS = torch.arange(len(tokens))[None]
        with generator.world.active(), torch.no_grad():
            logits_SBV = chunk(torch.tensor([tokens]), positions_BS)
        tokens.append(int(logits_SBV[-1, 0, :VOCABULARY].argmax()))
    return tokens[len(prompt) :]


def cached_and_full(_rank: int, family: str) -> tuple[list[int], list[int]]:
    generator = build(family)
    return generator.generate(PROMPTS[:1], GREEDY)[0], full_forward_greedy(generator, PROMPTS[0], 20)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_changes_nothing(family: str) -> None:
    cached, full = run_ranks(1, cached_and_full, family)[0]
    assert cached == full
    assert len(set(cached)) > 5, "a text of one token would prove little"


def alone_and_together(_rank: int, family: str) -> list[tuple[list[list[int]], list[list[int]]]]:
    generator = build(family)
    found = []
    for options in (GREEDY, SAMPLED):
        alone = [
            generator.generate([prompt], replace(options, seed=options.seed + row))[0]
            for row, prompt in enumerate(PROMPTS)
        ]
        found.append((alone, generator.generate(PROMPTS, options)))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_in_a_batch_is_as_alone(family: str) -> None:
    for alone, together in run_ranks(1, alone_and_together, family)[0]:
        assert together == alone
        assert len({tuple(text) for text in together}) == len(PROMPTS)


def texts_under(_rank: int, family: str, layout: Layout) -> list[list[list[int]]]:
    generator = build(family, layout)
    return [generator.generate(PROMPTS, options) for options in (GREEDY, SAMPLED)]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_layout_writes_the_same(family: str) -> None:
    expected = run_ranks(1, texts_under, family, Layout())[0]
    for layout in (
        Layout(tensor=2),
        Layout(pipeline=2),
        Layout(pipeline=2, interleave=2),
        Layout(tensor=2, pipeline=2),
    ):
        found = run_ranks(layout.world_size, texts_under, family, layout)
        assert found == [expected] * layout.world_size, layout


WANTED = [3, 50, 100]


def log_probabilities_under(_rank: int, layout: Layout) -> list[list[float]]:
    return build("llama", layout).next_log_probabilities(PROMPTS, WANTED)


def log_probabilities_without_a_cache(_rank: int) -> list[list[float]]:
    generator = build("llama")
    found = []
    for prompt in PROMPTS:
        with generator.world.active(), torch.no_grad():
            logits_SBV = generator.chunks[0].eval()(torch.tensor([prompt]), torch.arange(len(prompt))[None])
        found.append(logits_SBV[-1, 0, :VOCABULARY].double().log_softmax(-1)[WANTED].tolist())
    return found


def test_log_probabilities_of_what_comes_next() -> None:
    expected = run_ranks(1, log_probabilities_without_a_cache)[0]
    for layout in (Layout(), Layout(tensor=2, pipeline=2)):
        for found in run_ranks(layout.world_size, log_probabilities_under, layout):
            for row, wanted in zip(found, expected, strict=True):
                assert row == pytest.approx(wanted, abs=1e-4), layout


def texts_by_transformers(_rank: int) -> dict[str, tuple[list[int], list[int]]]:
    """For each family: transformers' greedy text, and ours with the same weights."""
    import transformers  # noqa: PLC0415 -- takes seconds, and only this test needs it

    found = {}
    for family in FAMILIES:
        section = model_section(family)
        config = transformers_config(transformers, family, section)
        torch.manual_seed(1)
        theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        generator = build(family)
        state = theirs.state_dict()
        stir(state, ("o_proj.weight", "down_proj.weight", "c_proj.weight"))
        with weights_to_fill(generator.chunks) as pieces:
            assert {piece.name for piece in pieces} == set(state) - {"lm_head.weight"} | (
                set() if family == "gpt2" else {"lm_head.weight"}
            )
            for piece in pieces:
                piece.data.copy_(state[piece.name][piece.box.slices])
        prompt = torch.tensor(PROMPTS[:1])
        text = theirs.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=None,
            pad_token_id=0,
        )[0, prompt.shape[1] :].tolist()
        found[family] = (text, generator.generate(PROMPTS[:1], GREEDY)[0])
    return found


def transformers_config(transformers: Any, family: str, section: ModelSection) -> Any:
    if family == "gpt2":
        return transformers.GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=POSITIONS,
            n_embd=section.hidden_size,
            n_layer=section.layers,
            n_head=section.heads,
            n_inner=section.ffn_size,
            initializer_range=0.2,
        )
    options: dict[str, Any] = {"sliding_window": section.sliding_window} if family == "mistral" else {}
    kinds = {"llama": "LlamaConfig", "qwen3": "Qwen3Config", "mistral": "MistralConfig"}
    return getattr(transformers, kinds[family])(
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
        hidden_size=section.hidden_size,
        intermediate_size=section.ffn_size,
        num_hidden_layers=section.layers,
        num_attention_heads=section.heads,
        num_key_value_heads=section.kv_heads,
        head_dim=section.head_size_or_default,
        rms_norm_eps=section.norm_epsilon,
        rope_theta=section.rope_base,
        tie_word_embeddings=False,
        initializer_range=0.2,
        **options,
    )


def test_transformers_writes_the_same_with_the_same_weights() -> None:
    for family, (theirs, ours) in run_ranks(1, texts_by_transformers)[0].items():
        assert ours == theirs, family
        assert len(set(ours)) > 3, family


def endings(_rank: int) -> dict[str, Any]:
    generator = build("llama")
    chunk = generator.chunks[0].train()
    streamed: list[list[int | None]] = []
    texts = generator.generate(PROMPTS, GREEDY)
    end_id = texts[2][4]
    ended = generator.generate(PROMPTS, replace(GREEDY, end_ids=frozenset((end_id,))), streamed.append)
    long = generator.generate([PROMPTS[0] * 5, PROMPTS[1]], replace(GREEDY, max_new_tokens=200))
    errors = []
    for prompts in ([], [[]], [[1] * POSITIONS]):
        with pytest.raises(ValueError) as error:
            generator.generate(prompts, GREEDY)
        errors.append(str(error.value))
    caches = [layer.self_attention.cache for layer in chunk.decoder.layers]
    return {
        "texts": texts,
        "end_id": end_id,
        "ended": ended,
        "streamed": streamed,
        "long": [len(text) for text in long],
        "errors": errors,
        "as before": chunk.training and caches == [None] * 4,
    }


def test_texts_end_where_they_should() -> None:
    found = run_ranks(1, endings)[0]
    end_id = found["end_id"]
    for whole, ended in zip(found["texts"], found["ended"]):
        assert ended == (whole[: whole.index(end_id) + 1] if end_id in whole else whole)
    assert any(len(ended) < 20 for ended in found["ended"])
    columns = zip(*found["streamed"])
    assert [[token for token in column if token is not None] for column in columns] == found["ended"]
    assert found["long"] == [POSITIONS - 45, POSITIONS - 1], "positions are full"
    assert found["errors"] == [
        "no prompts",
        f"prompt 0 has 0 tokens; must be 1 to {POSITIONS - 1}",
        f"prompt 0 has {POSITIONS} tokens; must be 1 to {POSITIONS - 1}",
    ]
    assert found["as before"]


FIXED = torch.tensor([[0.15, 0.5, 0.1, 0.25]]).log()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (SamplingOptions(), [0.15, 0.5, 0.1, 0.25]),
        (SamplingOptions(temperature=0.5), [0.0225, 0.25, 0.01, 0.0625]),
        (SamplingOptions(top_k=2), [0, 0.5, 0, 0.25]),
        (SamplingOptions(top_k=9), [0.15, 0.5, 0.1, 0.25]),
        (SamplingOptions(top_p=0.4), [0, 1, 0, 0]),
        (SamplingOptions(top_p=0.7), [0, 0.5, 0, 0.25]),
        (SamplingOptions(top_p=0.8), [0.15, 0.5, 0, 0.25]),
        (SamplingOptions(top_k=3, top_p=0.8), [0, 0.5, 0, 0.25]),
    ],
)
def test_probabilities(options: SamplingOptions, expected: list[float]) -> None:
    wanted = torch.tensor([expected], dtype=torch.float64)
    torch.testing.assert_close(probabilities(FIXED, options), wanted / wanted.sum(), rtol=1e-6, atol=1e-9)


def test_draws_follow_the_probabilities() -> None:
    options = SamplingOptions(temperature=0.8, top_p=0.9, seed=3)
    wanted, draws = probabilities(FIXED, options)[0], 4000
    logits_BV = FIXED.expand(20, -1)
    counts = Counter(
        token
        for step in range(draws // 20)
        for token in draw(logits_BV, options, [uniform(row, step) for row in range(20)]).tokens_B.tolist()
    )
    for token, probability in enumerate(wanted.tolist()):
        deviation = math.sqrt(draws * probability * (1 - probability))
        assert abs(counts[token] - draws * probability) <= 4 * deviation, (token, counts)
    assert counts[2] == 0


def test_uniform_numbers_are_uniform_and_repeat() -> None:
    numbers = [uniform(seed, step) for seed in range(40) for step in range(50)]
    assert numbers == [uniform(seed, step) for seed in range(40) for step in range(50)]
    assert len(set(numbers)) == len(numbers)
    assert 0 <= min(numbers) < 0.01 and 0.99 < max(numbers) < 1
    assert abs(sum(numbers) / len(numbers) - 0.5) < 4 * math.sqrt(1 / 12 / len(numbers))


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_options_outside_their_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingOptions(**wrong)


def texts_around_a_change(_rank: int) -> tuple[Any, ...]:
    generator = build("llama")
    before = generator.generate(PROMPTS, GREEDY)
    chunk = generator.chunks[0]
    copies = [one.packed for one in chunk.modules() if isinstance(one, ColumnParallelLinear)]
    stir(dict(chunk.named_parameters()), ("linear_qkv.weight",))
    alone = [generator.generate([prompt], GREEDY)[0] for prompt in PROMPTS]
    return before, copies, generator.generate(PROMPTS, GREEDY), alone


def test_weights_may_change_between_two_texts() -> None:
    """Copies of weights are of one `generate`: with four prompts there are some, with one there are none."""
    before, copies, after, alone = run_ranks(1, texts_around_a_change)[0]
    assert copies and all(copy is None for copy in copies)
    assert after != before
    assert after == alone
