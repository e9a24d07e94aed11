"""How long `llmscale submit` takes for the shell, with programs of SLURM that only remember.

python -m bench.submit
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.data.corpora import write_corpus
from tests.launcher.conftest import CONFIG, LARGE
from tests.launcher.fake_scheduler import FakeScheduler

ROUNDS = 5
SWEEP = f"sweep={{train.seed: {list(range(500))}, optimizer.lr: [1e-3, 1e-4]}}"

CASES = {
    "--help": ["--help"],
    "a run of 1,024 nodes, dry": ["large.yaml", "--dry-run"],
    "a run of 1,024 nodes": ["large.yaml"],
    "a sweep of 1,000 runs, dry": ["tiny.yaml", SWEEP, "--dry-run"],
    "a sweep of 1,000 runs": ["tiny.yaml", SWEEP],
}
"""Name -> what stands behind `llmscale submit`."""


def main() -> None:
    table = Table("llmscale submit", "median", "slowest", box=None, pad_edge=False)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_corpus(place / "corpus")
        (place / "tiny.yaml").write_text(CONFIG)
        (place / "large.yaml").write_text(LARGE)
        environment = {**os.environ, "PATH": FakeScheduler(place / "slurm").path}
        for name, arguments in CASES.items():
            seconds = [_seconds(arguments, place, environment) for _ in range(ROUNDS)]
            table.add_row(name, f"{statistics.median(seconds):.2f} s", f"{max(seconds):.2f} s")
    Console().print(table)


def _seconds(arguments: list[str], place: Path, environment: dict[str, str]) -> float:
    command = [sys.executable, "-m", "llmscale", "submit", *arguments]
    start = time.perf_counter()
    subprocess.run(command, cwd=place, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
