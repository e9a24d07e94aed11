"""Records some steps of a run with torch's profiler, and leaves the trace and what it adds up to."""

import gzip
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from llmscale.control.watchdog import Phase
from llmscale.runtime.describe import describe_event
from llmscale.runtime.events import EventLog
from llmscale.runtime.hooks import Hook, RunStart, StepRecord
from llmscale.runtime.profiling.breakdown import Breakdown, break_down
from llmscale.runtime.profiling.files import FOLDER, read_breakdowns, trace_path, write_breakdown


class Scheduled(Protocol):
    """A model's config, as Megatron's schedules ask it for timers."""

    timers: Any


class ProfileHook(Hook):
    """For the ranks whose time is looked at; the last of a rank's hooks, so that all others hear of a step
    before what comes after it takes time.

    Steps that an earlier start of the run has done are gone: of them nothing is recorded, which rank 0 says
    unless they were recorded then. A run that ends between the first and the last step leaves those that it
    has done.

    Args:
        run_folder: gets the folder `profile`.
        steps: the first and the last one to record.
        rank: in the world.
        stage: which one of the pipeline's this rank is.
        models: configs of this rank's chunks of the model.
        tell: is told that this rank is about something else than steps.
    """

    def __init__(
        self,
        run_folder: Path,
        steps: tuple[int, int],
        rank: int,
        stage: int,
        models: Sequence[Scheduled],
        tell: Callable[[Phase], None],
    ) -> None:
        self.run_folder = run_folder
        self.first, self.last = steps
        self.rank = rank
        self.stage = stage
        self.models = models
        self.tell = tell
        self.began = 0
        """First step that is being recorded; 0: none is."""
        self._profile: profile | None = None

    def on_start(self, start: RunStart) -> None:
        if start.step >= self.last:
            self._say_missing(f"the run goes on after step {start.step}")
        elif start.step + 1 >= self.first:
            self._begin(start.step + 1)

    def on_step(self, record: StepRecord) -> None:
        if self._profile is not None and record.step == self.last:
            self._end(record.step)
        elif self._profile is None and record.step + 1 == self.first:
            self._begin(self.first)

    def on_end(self, step: int, preempted: bool) -> None:
        if self._profile is not None:
            self._end(step, "leaving")
        elif step < self.first and not preempted:
            self._say_missing(f"the run ended with step {step}")

    def _begin(self, step: int) -> None:
        self.began = step
        for model in self.models:
            model.timers = ScheduleMarks()
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities, record_shapes=True, profile_memory=True)
        self._profile.start()

    def _end(self, step: int, then: Phase = "training") -> None:
        recorded, self._profile = self._profile, None
        assert recorded is not None
        recorded.stop()
        for model in self.models:
            model.timers = None
        if step < self.began:
            return
        self.tell("saving")
        try:
            found = self._write(recorded, step)
        except OSError as error:
            self._say("not_profiled", cause=f"{self.run_folder / FOLDER} cannot be written to: {error}")
        else:
            path = trace_path(self.run_folder, (self.began, step), self.rank).relative_to(self.run_folder)
            self._say("profiled", step, first=self.began, seconds=found.step_seconds, trace=str(path))
        self.tell(then)

    def _write(self, recorded: profile, step: int) -> Breakdown:
        """The trace, compressed, and the breakdown after it: where that is, the trace is, too."""
        target = trace_path(self.run_folder, (self.began, step), self.rank)
        target.parent.mkdir(exist_ok=True)
        whole, packed = (target.with_name(f".{target.name}.{part}") for part in ("whole", "packed"))
        recorded.export_chrome_trace(str(whole))
        with whole.open("rb") as source, gzip.open(packed, "wb", compresslevel=6) as compressed:
            shutil.copyfileobj(source, compressed)
        with packed.open("rb") as file:
            os.fsync(file.fileno())
        found = break_down(json.loads(whole.read_bytes()), self.began, step, self.rank, self.stage)
        whole.unlink()
        packed.replace(target)
        write_breakdown(self.run_folder, found)
        return found

    def _say_missing(self, why: str) -> None:
        before = read_breakdowns(self.run_folder)
        if not any(one.first <= self.last and one.last >= self.first for one in before):
            self._say("not_profiled", cause=f"train.profile={self.first}:{self.last}, but {why}")

    def _say(
        self, kind: Literal["profiled", "not_profiled"], step: int | None = None, **details: Any
    ) -> None:
        """To the reader of the run, by rank 0; by others to whoever reads their logs."""
        if self.rank == 0:
            EventLog(self.run_folder).write(kind, step, **details)
        else:
            print(describe_event(kind, step, details), flush=True)


class ScheduleMarks:
    """Stands in for the timers of Megatron's schedules: each is a mark in the trace."""

    def __init__(self) -> None:
        self._timers: dict[str, _Timer] = {}

    def __call__(self, name: str, log_level: int | None = None) -> "_Timer":
        return self._timers.setdefault(name, _Timer(name))


class _Timer:
    def __init__(self, name: str) -> None:
        self.name = name

    def start(self, **_: Any) -> None:
        self._mark = record_function(self.name)
        self._mark.__enter__()

    def stop(self) -> None:
        self._mark.__exit__(None, None, None)
