"""The report as one HTML file that needs nothing beside it."""

import time
from collections.abc import Iterable, Sequence
from html import escape

from llmscale.report.gather import RunData, changed_settings, summary
from llmscale.report.pictures import CURVES, Draw, draw_loss, render
from llmscale.runtime.describe import describe_event

WIDE, NARROW = (10.0, 4.2), (5.0, 3.0)

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #0f172a; background: #f8fafc; margin: 0 auto;
       max-width: 1080px; padding: 32px 20px; }
h1 { font-size: 26px; margin: 0 0 4px } h2 { font-size: 18px; margin: 32px 0 8px }
h3 { font-size: 15px; margin: 16px 0 4px; color: #475569 }
.note { color: #64748b; margin: 0 0 20px }
.card { background: #fff; border: 1px solid #e2e8f0; border-radius: 10px; padding: 14px 18px;
        overflow-x: auto }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 14px;
        margin-top: 14px }
svg { width: 100%; height: auto; display: block }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid #f1f5f9; vertical-align: top }
th { color: #475569; font-weight: 600 } td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
tr.failed td { color: #b91c1c } pre { font-size: 12px; margin: 4px 0; white-space: pre-wrap }
"""


def page(runs: Sequence[RunData]) -> str:
    """The whole report; curves lie over each other where there are several runs."""
    names = ", ".join(run.name for run in runs)
    made = time.strftime("%Y-%m-%d %H:%M")
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{escape(names)} – llmscale report</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(names)}</h1><p class='note'>llmscale report, {made}</p>",
        f"<div class='card'>{_comparison(runs)}</div>",
        *_curves([run for run in runs if run.metrics]),
    ]
    for run in runs:
        heading = f": {escape(run.name)}" if len(runs) > 1 else ""
        parts.append(f"<h2>Events{heading}</h2><div class='card'>{_events(run)}</div>")
        settings = _table(("key", "value"), changed_settings(run.config))
        parts.append(f"<h2>Settings that are not defaults{heading}</h2><div class='card'>{settings}</div>")
    return "".join([*parts, "</body></html>\n"])


def _curves(runs: Sequence[RunData]) -> Iterable[str]:
    if not runs:
        return
    yield f"<h2>Curves</h2><div class='card'>{_svg(draw_loss, runs, WIDE)}</div><div class='grid'>"
    for column, draw in CURVES.items():
        having = [run for run in runs if run.has(column)]
        if having:
            yield f"<div class='card'>{_svg(draw, having, NARROW)}</div>"
    yield "</div>"


def _svg(draw: Draw, runs: Sequence[RunData], size: tuple[float, float]) -> str:
    text = render(draw, runs, "svg", size).decode()
    return text[text.index("<svg") :]


def _comparison(runs: Sequence[RunData]) -> str:
    """A row a number, a column a run."""
    summaries = [dict(summary(run)) for run in runs]
    names = list(dict.fromkeys(name for found in summaries for name in found))
    rows = [(name, *(found.get(name, "–") for found in summaries)) for name in names]
    return _table(("", *(run.name for run in runs)), rows)


def _events(run: RunData) -> str:
    rows: list[str] = []
    for event in run.events:
        when = time.strftime("%m-%d %H:%M:%S", time.localtime(event.time))
        text = escape(describe_event(event.kind, event.step, event.details))
        lines = event.details.get("log_lines")
        if lines:
            text += (
                f"<details><summary>last lines</summary><pre>{escape(chr(10).join(lines))}</pre></details>"
            )
        rows.append(f"<tr class='{event.kind}'><td>{when}</td><td>{event.kind}</td><td>{text}</td></tr>")
    return "<table><tr><th>time</th><th>event</th><th></th></tr>" + "".join(rows) + "</table>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
