"""Tokens a second of one text, with the key-value cache and without it.

    python bench/generate.py [--preset tiny] [--tokens 200] [--threads 1]

Random weights, float32 or bfloat16, one rank; the best of three runs.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

warnings.filterwarnings("ignore", category=UserWarning)

from llmscale.config.load import load_config  # noqa: E402
from llmscale.engine.generate import Generator  # noqa: E402
from llmscale.engine.sampling import SamplingOptions  # noqa: E402
from llmscale.model.build import build_model  # noqa: E402
from llmscale.parallel.distributed import connect, disconnect  # noqa: E402
from llmscale.parallel.environment import RankEnvironment  # noqa: E402
from llmscale.parallel.layout import Layout  # noqa: E402
from llmscale.parallel.world import World  # noqa: E402

VOCABULARY = 8192
PROMPT = list(range(16))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    world = World(Layout(), connect(RankEnvironment()))
    for precision in ("fp32", "bf16"):
        generator = build(world, options.preset, precision, options.tokens + len(PROMPT))
        speeds = ", ".join(
            f"{speed:.0f} {what}" for what, speed in measure(generator, options.tokens).items()
        )
        print(f"{options.preset} {precision}, {options.threads} threads, tokens/s: {speeds}")
    disconnect()


def measure(generator: Generator, count: int) -> dict[str, float]:
    """Tokens a second."""
    greedy = SamplingOptions(max_new_tokens=count, temperature=0)
    return {
        "with a cache": count / best(lambda: generator.generate([PROMPT], greedy)),
        "in a batch of 8": 8 * count / best(lambda: generator.generate([PROMPT] * 8, greedy)),
        "without a cache": count / best(lambda: without_cache(generator, count)),
    }


def build(world: World, preset: str, precision: str, positions: int) -> Generator:
    overrides = [f"model.preset={preset}", f"train.precision={precision}", f"model.max_positions={positions}"]
    overrides += [f"train.sequence_length={positions}"]
    config = load_config(Path("configs/pretrain/tiny.yaml"), overrides)
    with world.active():
        return Generator(build_model(config.model, config.train, VOCABULARY, world), world)


@torch.no_grad()
def without_cache(generator: Generator, count: int) -> None:
    tokens, chunk = list(PROMPT), generator.chunks[0].eval()
    with generator.world.active():
        for _ in range(count):
            hidden = chunk.hidden_states(torch.tensor([tokens]), torch.arange(len(tokens))[None])
            tokens.append(int(chunk.logits(hidden[-1:]).argmax()))


def best(work: Callable[[], object]) -> float:
    seconds: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


if __name__ == "__main__":
    main()
