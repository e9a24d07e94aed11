"""A pipeline as jobs: each stage waits until those before it have finished."""

import json
from collections.abc import Mapping
from pathlib import Path

from llmscale.config.pipeline import Pipeline
from llmscale_launcher.job import JobRecord, write_whole
from llmscale_launcher.planned import PlannedJob, PlannedWait

PIPELINE_NAME = "pipeline.json"


def plan_pipeline(pipeline: Pipeline) -> list[PlannedJob]:
    """One job a stage, in order."""
    folders = {stage.name: stage.config.run_folder.absolute() for stage in pipeline.stages}
    return [
        PlannedJob(stage.config, after=tuple(PlannedWait(folders[name]) for name in stage.after))
        for stage in pipeline.stages
    ]


def write_pipeline(pipeline: Pipeline, records: Mapping[Path, JobRecord]) -> Path:
    """Write `pipeline.json` to the pipeline's own folder beside those of its runs."""
    folder = pipeline.stages[0].config.run.root.absolute() / pipeline.name
    folder.mkdir(parents=True, exist_ok=True)
    stages = [
        {
            "name": stage.name,
            "run": str(run := stage.config.run_folder.absolute()),
            "job": records[run].key,
        }
        for stage in pipeline.stages
    ]
    write_whole(
        folder / PIPELINE_NAME, json.dumps({"name": pipeline.name, "stages": stages}, indent=1) + "\n"
    )
    return folder / PIPELINE_NAME
