"""Prints what becomes of every ordered pair of layouts, as the tables of docs/resharding.md.

OMP_NUM_THREADS=1 python -m tests.distributed.reshard_table [--further 200] [--layouts "1 rank" TP2 …]
    [--precisions fp32 fp64] [--models untied tied]
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.distributed.resharding import LAYOUTS, Kind, Outcome, read, write

MODELS = {"untied": False, "tied": True}
SECONDS_OF_A_READER = 3600


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--further", type=int, default=1, help="steps that each reader goes on for")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "fp64", "bf16"), default=["fp32", "fp64"])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    for precision in options.precisions:
        for model in options.models:
            kind = Kind(MODELS[model], precision)
            layouts = [name for name in kind.layouts() if name in options.layouts]
            print_matrix(f"{precision}, {model}", kind, layouts, options.further)


def print_matrix(title: str, kind: Kind, layouts: Sequence[str], further: int) -> None:
    """A row a reader, over all writers, as each is done; and the whole."""
    began, outcomes = time.monotonic(), []
    print(f"\n{title}: {len(layouts)} layouts, {len(layouts) * (len(layouts) - 1)} ordered pairs\n")
    print(f"| loaded under | stored tensors that differ | next loss | {further} further losses |")
    print("|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        written = write(
            kind, layouts, Path(folder), dict.fromkeys(layouts, further), timeout_seconds=SECONDS_OF_A_READER
        )
        for reader in layouts:
            pairs = [(writer, reader) for writer in layouts if writer != reader]
            place = Path(folder) / "read"
            found = read(
                kind,
                written,
                pairs,
                place,
                dict.fromkeys(pairs, further),
                timeout_seconds=SECONDS_OF_A_READER,
            )
            shutil.rmtree(place)
            print(row(reader, found), flush=True)
            outcomes += found
    print(row("**all**", outcomes))
    print(f"\n{time.monotonic() - began:.0f} s", flush=True)


def row(name: str, outcomes: Sequence[Outcome]) -> str:
    """The largest differences, each with the layout that wrote."""
    different = sum(len(outcome.different) for outcome in outcomes)
    soon = max(outcomes, key=lambda outcome: outcome.next_loss)
    late = max(outcomes, key=lambda outcome: outcome.further_loss)
    return (
        f"| {name} | {different} | {soon.next_loss:.1e} ({soon.writer}) "
        f"| {late.further_loss:.1e} ({late.writer}) |"
    )


if __name__ == "__main__":
    main()
