"""From steps that do not come to a name: when to look at the ranks, and what the looks say. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from llmscale.config.cluster import WatchdogSection
from llmscale.control.culprit import find_culprit
from llmscale.control.messages import Failure, Happening, Report
from llmscale.control.watchdog import Hang, Straggler, Suspect, Watchdog

LOOK_SECONDS = 0.2
"""Least time between two looks: with thousands of ranks each costs milliseconds."""
EXAMINE_SECONDS = 3.0
"""How long agents may take to look at their ranks."""


class HangWatch:
    """Watches one generation of ranks; `hang` is set when they must start again."""

    def __init__(self, options: WatchdogSection, ranks: Sequence[int], stages: int) -> None:
        self.watchdog = Watchdog(options, ranks, stages)
        self.examination = 0
        """How often agents were asked to look at their ranks."""
        self.asked: float | None = None
        self.named: Failure | None = None
        self.step = 0
        self.hang: Failure | None = None
        self.looked = float("-inf")
        self.happenings: list[Happening] = []

    def look(self, now: float, reports: Mapping[str, Report], ages: Mapping[str, float]) -> None:
        """Judge the newest report of every agent, `ages` seconds old at `now`."""
        if now - self.looked < LOOK_SECONDS:
            return
        self.looked = now
        beats = {
            rank: replace(beat, age_seconds=beat.age_seconds + ages[agent])
            for agent, report in reports.items()
            for rank, beat in report.beats.items()
        }
        step = min((beat.step for beat in beats.values()), default=0)
        if step > self.step:
            self._forget()
        self.step = step
        verdict = self.watchdog.observe(now, beats)
        if isinstance(verdict, Suspect):
            self.examination += 1
            self.asked = now
        elif isinstance(verdict, Straggler):
            self._name_straggler(verdict, reports)
        elif isinstance(verdict, Hang):
            self.hang = self._as_failure(verdict, min(beats))
        if self.asked is not None and self.named is None:
            self._name(list(reports.values()), now - self.asked)

    def take_happenings(self) -> list[Happening]:
        """What happened since the last call."""
        taken, self.happenings = self.happenings, []
        return taken

    def _forget(self) -> None:
        if self.named is not None:
            self.happenings.append(Happening("", None, text="steps come again"))
        self.asked = self.named = None

    def _name(self, reports: Sequence[Report], waited: float) -> None:
        """Once all agents have looked, or had the time to: who holds up the others?"""
        answers = [report for report in reports if report.examined == self.examination]
        evidence = [found for report in answers for found in report.evidence]
        if not evidence or (len(answers) < len(reports) and waited < EXAMINE_SECONDS):
            return
        culprit, reason = find_culprit(evidence)
        self.named = Failure(culprit.rank, culprit.host, culprit.pid, reason, None, "", culprit.stack, "hang")
        text = f"no step comes: rank {culprit.rank} on {culprit.host} (pid {culprit.pid}) {reason}"
        stack = "".join(f"\n  | {line}" for line in culprit.stack)
        details = {
            "rank": culprit.rank,
            "host": culprit.host,
            "pid": culprit.pid,
            "cause": reason,
            "stack": culprit.stack,
        }
        self.happenings.append(Happening("hanging", None, details, text + stack))

    def _name_straggler(self, verdict: Straggler, reports: Mapping[str, Report]) -> None:
        host = next(report.host for report in reports.values() if verdict.rank in report.beats)
        cause = f"at work {verdict.ratio:.1f} times as long a step as ranks with the same work"
        details = {"rank": verdict.rank, "host": host, "cause": cause, "ratio": verdict.ratio}
        text = f"rank {verdict.rank} on {host} holds up the others: {cause}"
        self.happenings.append(Happening("straggling", None, details, text))

    def _as_failure(self, verdict: Hang, first_rank: int) -> Failure:
        cause = f"hang: no step for {verdict.seconds:.0f} s"
        if self.named is None:
            return Failure(first_rank, "", 0, f"{cause}, and no rank gave itself away", None, "", (), "hang")
        return replace(self.named, cause=f"{cause}; this rank {self.named.cause}")
