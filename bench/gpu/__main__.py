"""Speed on one GPU, held against what the GPU can do.

python -m bench.gpu [--only PART …] [--quick] [--device cuda|cpu] [--rounds N] [--output FOLDER]

The parts are train (model FLOP utilisation), operations (kernels beside memory bandwidth and other libraries)
and decode (tokens a second beside what reading weights and cache takes). Needs no network.
"""

import argparse
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

warnings.filterwarnings("ignore", category=UserWarning)  # Megatron's, of what is not installed

from bench.gpu import decode, operations, training  # noqa: E402
from bench.gpu.ceilings import Ceilings, measured_ceilings  # noqa: E402
from bench.gpu.device import description, found_device  # noqa: E402
from bench.rounds import write_json  # noqa: E402

PARTS: dict[str, ModuleType] = {"train": training, "operations": operations, "decode": decode}
"""Training goes first, while this process holds next to nothing of the GPU's memory."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument(
        "--quick", action="store_true", help="the smallest model, briefly: does it run at all"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: with --quick only")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    options = parser.parse_args()
    if options.device == "cpu" and not options.quick:
        parser.error("a CPU is for trying the program: --device cpu --quick")
    try:
        device = found_device(options.device)
    except LookupError as error:
        parser.error(str(error))
    if device.type == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for the processes that train, too
    rounds = 1 if options.quick else options.rounds
    ceilings = measured_ceilings(device, options.quick)
    results: dict[str, Any] = {"machine": description(device), "ceilings": vars(ceilings)}
    print_ceilings(results["machine"]["device"], ceilings)
    for part in (part for part in PARTS if part in options.only):
        free_memory(device)
        results[part] = []
        for row in rows_of(part, options.quick, ceilings, rounds, device):
            results[part].append(row)
            write_json(options.output / "gpu.json", results)
        PARTS[part].report(results[part])
        PARTS[part].draw(options.output / f"gpu_{part}.png", results["machine"]["device"], results[part])
    failed = [failure for part in ("train", "operations") for failure in failures(results.get(part, []))]
    if failed:
        raise SystemExit("llmscale failed:\n" + "\n".join(failed))


def failures(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Of llmscale, whose code this is: none is expected, but that memory ends while training."""
    for row in rows:
        failure = row.get("failures", row).get("llmscale")
        failure = failure.get("failure") if isinstance(failure, dict) else failure
        if failure and failure != training.OUT_OF_MEMORY:
            yield failure


def rows_of(
    part: str, quick: bool, ceilings: Ceilings, rounds: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    """What is measured, one after the other."""
    if part == "train":
        threads = len(os.sched_getaffinity(0))
        return training.measured_models(training.workloads(quick, threads), ceilings, rounds)
    if part == "operations":
        turns = operations.QUICK_TURNS if quick else operations.TURNS
        sizes = operations.usual_sizes(quick)
        return operations.measured_operations(sizes, ceilings, rounds, turns, device)
    return decode.measured_decoding(decode.QUICK if quick else decode.Task(), ceilings, rounds)


def free_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def print_ceilings(device: str, ceilings: Ceilings) -> None:
    datasheet = ceilings.datasheet_flops_per_second
    told = "no data sheet known" if datasheet is None else f"{datasheet / 1e12:,.1f} by the data sheet"
    print(
        f"{device}: products {ceilings.flops_per_second / 1e12:,.2f} TFLOP/s ({told}), "
        f"copy {ceilings.bytes_per_second / 1e9:,.1f} GB/s",
        flush=True,
    )


if __name__ == "__main__":
    main()
