"""`llmscale status`: how runs stand, wherever they run."""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llmscale.run.committed import committed_step
from llmscale.run.groups import RunGroup, all_groups, find_group
from llmscale.run.standing import LIVE, RunStatus, State, read_statuses
from llmscale.runtime.describe import describe_event, duration, quantity, step_numbers
from llmscale.runtime.events import Event, read_events

Root = Annotated[Path, typer.Option("--root", help="Folder that holds the run folders.")]

WORDS: dict[State, str] = {"saved": "saved, can go on", "gone": "gone without a word"}
COLORS: dict[State, str] = {
    "running": "green",
    "done": "green",
    "failed": "red",
    "gone": "red",
    "unknown": "yellow",
    "cancelled": "yellow",
}
HEAD = ("run", "state", "step", "loss", "tokens/s", "time left", "saved", "restarts", "requeues", "reason")
GAP = "  "
WATCH_SECONDS = 2.0
SHOWN_EVENTS = 12
WIDEST_REASON = 72


def status(
    run: Annotated[str | None, typer.Argument(help="A run, a sweep or a pipeline; all if left out.")] = None,
    root: Root = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one JSON document.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it anew until Ctrl-C.")] = False,
) -> None:
    """How runs stand: step, loss, speed, time left, restarts, last failure."""
    if as_json:
        typer.echo(json.dumps(_as_json(run, root), indent=1))
        return
    console = Console()
    if not watch:
        console.print(_shown(run, root), soft_wrap=True)
        return
    with Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            live.update(_shown(run, root), refresh=True)
            time.sleep(WATCH_SECONDS)


def _as_json(run: str | None, root: Path) -> Any:
    if run is None:
        return _documents(all_groups(root))
    group = find_group(run, root)
    if group.kind != "run":
        return _documents([group])
    events = [asdict(event) for event in read_events(group.folders[0])]
    saved = committed_step(group.folders[0])
    return {**_documents([group])[0], "saved": saved, "events": events}


def _documents(groups: Sequence[RunGroup]) -> list[dict[str, Any]]:
    """The status for programs; keys stay as they are from version to version."""
    found = iter(read_statuses([folder for group in groups for folder in group.folders]))
    documents: list[dict[str, Any]] = []
    for group in groups:
        for member, run in zip(group.members, found):
            document = {**asdict(run), "folder": str(run.folder)}
            belongs = None if group.kind == "run" else {"kind": group.kind, "name": group.name}
            documents.append({**document, "group": belongs, "note": member.note})
    return documents


def _shown(run: str | None, root: Path) -> RenderableType:
    groups = all_groups(root) if run is None else [find_group(run, root)]
    if run is not None and groups[0].kind == "run":
        return _one(groups[0].folders[0])
    return _table(groups) if groups else Text(f"no runs under {root}")


def _table(groups: Sequence[RunGroup]) -> Text:
    """Columns as wide as what stands in them: rich's own table takes a second for a thousand rows."""
    found = iter(read_statuses([folder for group in groups for folder in group.folders]))
    rows: list[tuple[str, ...]] = [HEAD]
    styles = ["bold"]
    for group in groups:
        runs = list(islice(found, len(group.members)))
        if group.kind != "run":
            rows.append((group.name, f"{group.kind}: {count_states(runs)}"))
            styles.append("bold")
        for member, run in zip(group.members, runs):
            rows.append(_row(run, "" if group.kind == "run" else "  ", member.note))
            styles.append(COLORS.get(run.state, ""))
    # What says how a whole group stands runs on over the columns.
    widths = [max(map(len, column)) for column in zip(*(row for row in rows if len(row) == len(HEAD)))]
    lines = [Text(_line(row, widths), style=style) for row, style in zip(rows, styles)]
    return Text("\n", no_wrap=True, overflow="ignore").join(lines)


def count_states(runs: Sequence[RunStatus]) -> str:
    """`3 done, 2 running`, the most frequent first."""
    counts = Counter(_word(run) for run in runs).most_common()
    return ", ".join(f"{count} {word}" for word, count in counts)


def _row(run: RunStatus, indent: str, note: str) -> tuple[str, ...]:
    saved = "-" if run.saved is None else str(run.saved)
    restarts, requeues = str(run.restarts), str(run.requeues)
    name = indent + (f"{run.name} ({note})" if note else run.name)
    return (name, _word(run), *_numbers(run), saved, restarts, requeues, _why(run))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return GAP.join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip()


def _word(found: RunStatus) -> str:
    return WORDS.get(found.state, found.state)


def _why(found: RunStatus) -> str:
    """Why it waits or ended; for one that runs again, what it last failed of."""
    if found.state == "done":
        return ""
    failure = found.last_failure
    if failure is not None and found.state not in ("pending", "requeued", "cancelled"):
        return first_line(describe_event("failed", failure.step, failure.details))
    return first_line(found.reason or "")


def first_line(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= WIDEST_REASON else line[: WIDEST_REASON - 1] + "…"


def _numbers(found: RunStatus) -> tuple[str, str, str, str]:
    """Step, loss, speed and time left."""
    steps = "?" if found.steps is None else found.steps
    step, metrics = f"{found.step}/{steps}", found.metrics
    if not metrics:
        return step, "-", "-", "-"
    left = "-" if found.seconds_left is None else duration(found.seconds_left)
    return step, _aim(metrics), quantity(metrics["tokens_per_second"]), left


def _aim(metrics: Mapping[str, Any]) -> str:
    """The loss; of a run on rewards, whose loss tells nothing, the reward and the divergence."""
    if "reward_mean" not in metrics:
        return f"{metrics['loss']:.4f}"
    divergence = metrics.get("kl_answer")
    said = f"reward {metrics['reward_mean']:.3f}"
    return said if divergence is None else f"{said} KL {divergence:.3g}"


def _one(folder: Path) -> RenderableType:
    """Everything about one run."""
    found = read_statuses([folder])[0]
    events = read_events(folder)
    step, loss, speed, left = _numbers(found)
    is_on_rewards = "reward_mean" in found.metrics
    saved = committed_step(folder)
    job = found.job
    rows = {
        "run": found.name,
        "state": Text(_word(found), style=COLORS.get(found.state, "")),
        "reason": found.reason if found.state != "failed" else None,
        "job": f"{job.kind} {job.key}, submitted {_clock(job.submitted)}" if job else None,
        "nodes": found.nodes,
        "waits for": ", ".join(Path(run).name for run in found.depends_on) if found.state in LIVE else None,
        "step": step,
        "now": None if found.part is None else str(found.part),
        "loss": None if is_on_rewards else loss,
        "answers": ", ".join(step_numbers(found.metrics)) if is_on_rewards else None,
        "tokens/s": speed,
        "time left": left,
        "saved": "nothing yet" if saved is None else f"step {saved}",
        "restarts": str(found.restarts),
        "requeues": str(found.requeues),
        "folder": str(found.folder),
    }
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        if value:
            table.add_row(name, value if isinstance(value, Text) else Text(value))
    return Group(table, *_events(events), *_failure(found.last_failure))


def _events(events: list[Event]) -> list[RenderableType]:
    if not events:
        return []
    lines: list[RenderableType] = [Text("last events", style="bold")]
    for event in events[-SHOWN_EVENTS:]:
        lines.append(Text(f"  {_clock(event.time)}  {describe_event(event.kind, event.step, event.details)}"))
        if event.kind in ("hanging", "straggling"):
            lines += [Text(f"    | {line}") for line in stack_lines(event.details)]
    return lines


def stack_lines(details: dict[str, Any]) -> list[str]:
    """The Python stack that a report of the watchdog carries, however it came."""
    stack = details.get("stack") or ()
    return stack.splitlines() if isinstance(stack, str) else [str(line).rstrip() for line in stack]


def _failure(failure: Event | None) -> list[RenderableType]:
    if failure is None:
        return []
    head = f"last failure ({_clock(failure.time)}): "
    lines: list[RenderableType] = [
        Text(head + describe_event("failed", failure.step, failure.details), style="bold")
    ]
    return lines + [Text(f"  | {line}") for line in failure.details.get("log_lines", [])]


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
