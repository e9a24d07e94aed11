"""`samples.jsonl`: what a run has learned from now and then, with its rewards, one JSON object a step."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmscale.runtime.hooks import Hook, Sample
from llmscale.runtime.lines import append_line, read_lines

FILE_NAME = "samples.jsonl"


class SampleFile(Hook):
    def __init__(self, run_folder: Path) -> None:
        self.path = run_folder / FILE_NAME

    def on_samples(self, step: int, samples: Sequence[Sample]) -> None:
        line = {"step": step, "samples": [as_json(sample) for sample in samples]}
        append_line(self.path, json.dumps(line))


def as_json(sample: Sample) -> dict[str, Any]:
    """Prompt and text, and what they are worth if anything tells."""
    fields = asdict(sample)
    return (
        fields
        if sample.reward is not None or sample.rewards
        else {"prompt": sample.prompt, "text": sample.text}
    )


def read_samples(run_folder: Path) -> dict[int, list[dict[str, Any]]]:
    """By step, the first one first; of a step that was repeated after a restart the last ones."""
    found = [json.loads(line) for line in read_lines(run_folder / FILE_NAME)]
    by_step = {line["step"]: line["samples"] for line in found}
    return {step: by_step[step] for step in sorted(by_step)}
