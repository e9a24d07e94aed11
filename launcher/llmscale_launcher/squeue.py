"""How SLURM says that jobs stand: one `squeue` for all of them, in columns that every version has."""

import subprocess
from collections.abc import Iterator, Sequence
from typing import Literal

from llmscale_launcher.job import JobRecord, JobState

State = Literal["pending", "running", "requeued", "ended", "unknown"]

COLUMNS = ("JobArrayID", "State", "Reason", "NodeList", "exit_code", "RestartCnt")
ANSWER_SECONDS = 60.0

WAITING = {
    "PENDING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "SPECIAL_EXIT",
    "RESV_DEL_HOLD",
}
WORKING = {"RUNNING", "COMPLETING", "SUSPENDED", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED"}


def query_states(records: Sequence[JobRecord]) -> dict[str, JobState]:
    """How each job stands, by key. A job that squeue does not know any more has ended."""
    if not records:
        return {}
    answer = _ask_squeue(sorted({record.id for record in records}))
    if answer is None:
        silent = JobState("unknown", "squeue gave no answer")
        return {record.key: silent for record in records}
    known = dict(_parse(answer))
    return {record.key: known.get(record.key, JobState("ended")) for record in records}


def _ask_squeue(ids: Sequence[str]) -> str | None:
    """The table of the jobs `ids`; None where SLURM does not answer."""
    columns = ",".join(f"{name}:|" for name in COLUMNS)
    command = ["squeue", "--array", "--noheader", "--states=all", f"--jobs={','.join(ids)}", "-O", columns]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # What squeue says of a single job that has left its memory.
    if done.returncode and "Invalid job id" in done.stderr:
        return ""
    return None if done.returncode else done.stdout


def _parse(table: str) -> Iterator[tuple[str, JobState]]:
    for line in table.splitlines():
        key, state, reason, nodes, exit_code, restarts = line.split("|")[: len(COLUMNS)]
        yield key, _state(state, reason, nodes, exit_code, restarts)


def _state(state: str, reason: str, nodes: str, exit_code: str, restarts: str) -> JobState:
    if state in WAITING:
        kind: State = "requeued" if restarts not in ("", "0") else "pending"
        return JobState(kind, reason)
    if state in WORKING:
        return JobState("running", None if reason == "None" else reason, nodes)
    words = state if reason in ("None", "") else f"{state} ({reason})"
    return JobState("ended", words, nodes, _exit_code(exit_code))


def _exit_code(text: str) -> int | None:
    """From `wait`'s raw status, or from CODE:SIGNAL as newer versions print it."""
    code, colon, number = text.partition(":")
    if not code.isdigit():
        return None
    if colon:
        return 128 + int(number) if number.isdigit() and int(number) else int(code)
    status = int(code)
    return 128 + (status & 127) if status & 127 else status >> 8
