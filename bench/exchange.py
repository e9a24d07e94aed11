"""Time and peak memory of importing and exporting a model of about 570 MB: `python -m bench.exchange`.

Each runs in a process of its own; memory is what its peak lies above what it had once all was imported.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers

from llmscale.config.schema import ModelSection
from llmscale.model.huggingface import hugging_face_config
from llmscale.run.export import plan_export
from llmscale.run.import_folder import plan_import

MODEL = ModelSection(hidden_size=768, layers=6, heads=12, ffn_size=2048, vocabulary_size=65536)
"""Embedding and output are 201 MB each, every other tensor is at most 6 MB."""
MEGABYTE = 10**6


def main() -> None:
    if len(sys.argv) > 1:
        work(*map(str, sys.argv[1:]))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        config = transformers.AutoConfig.for_model(**hugging_face_config(MODEL, 65536, 1024))
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
        for what, source, out in (("import", "model", "run"), ("export", "run", "exported")):
            command = [sys.executable, "-m", "bench.exchange", what, folder / source, folder / out]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            print(what, json.loads(done.stdout.splitlines()[-1]))


def work(what: str, source: str, out: str) -> None:
    torch.set_num_threads(1)
    start = peak_bytes()
    begin = time.perf_counter()
    written = 0

    def on_bytes(count: int) -> None:
        nonlocal written
        written += count

    if what == "import":
        plan_import(Path(source), Path(out), None).write(on_bytes)
    else:
        plan = plan_export(source, Path(source).parent, None, "fp32")
        plan.write(Path(out), 200 * MEGABYTE, on_bytes)
    seconds = time.perf_counter() - begin
    print(
        json.dumps(
            {
                "written_mb": round(written / MEGABYTE),
                "seconds": round(seconds, 2),
                "mb_per_second": round(written / MEGABYTE / seconds),
                "memory_mb": round((peak_bytes() - start) / MEGABYTE),
            }
        )
    )


def peak_bytes() -> int:
    """Largest resident memory of this process so far. (`ru_maxrss` would begin with its parent's.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    [peak] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peak) * 1024


if __name__ == "__main__":
    main()
