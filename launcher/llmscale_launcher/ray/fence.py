"""No two attempts of a run on one machine: what an earlier one has left is gone before the next begins."""

from pathlib import Path

from llmscale_launcher.ray.marks import end_marked

VARIABLE = "LLMSCALE_RAY_ATTEMPT"


def mark(run_folder: Path, attempt: str) -> dict[str, str]:
    """The variable that the agents of an attempt carry, and with them their ranks."""
    return {VARIABLE: f"{run_folder}#{attempt}"}


def end_earlier(run_folder: Path, attempt: str) -> list[int]:
    """Kill all that other attempts of this run have left on this machine; returns the process ids.

    Raises:
        TimeoutError: one of them does not die, so nothing may be started here.
    """
    run, current = f"{run_folder}#", f"{run_folder}#{attempt}"
    return end_marked(VARIABLE, lambda value: value.startswith(run) and value != current)
