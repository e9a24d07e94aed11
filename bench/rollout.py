"""Tokens a second of a rollout, beside transformers' `generate`: same model, same prompts, one thread.

    python bench/rollout.py [--preset llama_6m] [--rows 32] [--answers 4] [--tokens 64]
        [--end-share 0.025] [--batches 4]

Random weights. Processor seconds, the best of several turns, in which both go one after the other: other work
on the machine counts little. With `--end-share` some tokens end a text, and texts have different lengths;
`--batches` times as many texts are asked for as there are rows.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

warnings.filterwarnings("ignore", category=UserWarning)

import transformers  # noqa: E402

from llmscale.config.load import load_config  # noqa: E402
from llmscale.engine.generate import Generator  # noqa: E402
from llmscale.engine.sampling import SamplingOptions  # noqa: E402
from llmscale.engine.texts import Request  # noqa: E402
from llmscale.model.build import build_model  # noqa: E402
from llmscale.model.huggingface import hugging_face_config  # noqa: E402
from llmscale.parallel.distributed import connect, disconnect  # noqa: E402
from llmscale.parallel.environment import RankEnvironment  # noqa: E402
from llmscale.parallel.layout import Layout  # noqa: E402
from llmscale.parallel.world import World  # noqa: E402

SHORTEST, LONGEST, TURNS = 8, 40, 3
POSITIONS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="llama_6m")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--answers", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--end-share", type=float, default=0.0)
    parser.add_argument("--batches", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    world = World(Layout(), connect(RankEnvironment()))
    overrides = [f"model.preset={options.preset}", f"model.max_positions={POSITIONS}"]
    overrides += [f"train.sequence_length={POSITIONS}", "train.precision=fp32"]
    config = load_config(Path("configs/pretrain/tiny.yaml"), overrides)
    vocabulary = config.model.vocabulary_size or 8192
    with world.active():
        generator = Generator(build_model(config.model, config.train, vocabulary, world), world)
    described = hugging_face_config(config.model, vocabulary, POSITIONS)
    peer = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**described))
    rows = options.rows
    prompts = make_prompts(rows * options.batches, options.answers, vocabulary)
    ends = list(range(100, 100 + int(options.end_share * vocabulary)))
    ours, theirs = measure(
        lambda: native(generator, prompts, rows, options.tokens, ends),
        lambda: sum(
            by_transformers(peer.eval(), prompts[first : first + rows], options.tokens, ends)
            for first in range(0, len(prompts), rows)
        ),
    )
    print(f"native {ours:.0f}, transformers {theirs:.0f} tokens/s: {ours / theirs:.2f} times as many")
    disconnect()


def make_prompts(rows: int, answers: int, vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(SHORTEST, LONGEST, (rows // answers,), generator=generator).tolist()
    different = [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]
    return [prompt for prompt in different for _ in range(answers)]


def native(
    generator: Generator, prompts: Sequence[list[int]], rows: int, tokens: int, ends: list[int]
) -> int:
    """Tokens that were written."""
    requests = [Request(prompt, seed, tokens) for seed, prompt in enumerate(prompts)]
    options = SamplingOptions(tokens, end_ids=frozenset(ends))
    return sum(len(text.tokens) for text in generator.write(requests, options, rows))


@torch.no_grad()
def by_transformers(
    model: torch.nn.Module, prompts: Sequence[list[int]], tokens: int, ends: list[int]
) -> int:
    """Tokens that were written, each text up to its end."""
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    found = model.generate(  # pyright: ignore[reportCallIssue]
        torch.tensor([[0] * before + prompt for before, prompt in zip(padding, prompts)]),
        attention_mask=torch.tensor([[0] * before + [1] * (longest - before) for before in padding]),
        do_sample=True,
        top_k=0,
        max_new_tokens=tokens,
        eos_token_id=ends or None,
        pad_token_id=0,
    )[:, longest:]
    is_end = torch.isin(found, torch.tensor(ends, dtype=torch.int64))
    return int(((is_end.cumsum(1) - is_end.long()) == 0).sum())


def measure(ours: Callable[[], int], theirs: Callable[[], int]) -> tuple[float, float]:
    """Tokens a second of both."""
    best = [0.0, 0.0]
    for _ in range(TURNS):
        for place, work in enumerate((ours, theirs)):
            began = time.process_time()
            best[place] = max(best[place], work() / (time.process_time() - began))
    return best[0], best[1]


if __name__ == "__main__":
    main()
