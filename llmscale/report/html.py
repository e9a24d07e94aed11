"""The report as one HTML file that needs nothing beside it."""

import time
from collections.abc import Iterable, Sequence
from html import escape

from llmscale.report.gather import RunData, changed_settings, summary
from llmscale.report.pictures import (
    CURVES,
    MOST_WITH_COUNTS,
    Draw,
    draw_confusion,
    draw_loss,
    draw_trade,
    render,
    validation_curve,
)
from llmscale.report.preference_pictures import draw_calibration, preference_pictures
from llmscale.report.preferences import DRAWN, calibration, calibration_table, is_on_preferences
from llmscale.report.profile_pictures import profile_picture
from llmscale.report.reward_pictures import draw_parts_of_steps, draw_reward, reward_pictures
from llmscale.report.rewards import seconds_of_parts
from llmscale.report.validations import (
    confusion,
    figures_table,
    label_table,
    metric_names,
    samples,
    trade,
    training_samples,
    validation_table,
)
from llmscale.runtime.describe import describe_event
from llmscale.runtime.profiling.tables import LARGEST, SLOWEST, kind_table, memory_table, peak, slowest_table

TEXTS = ("prompt", "text")
"""Heads of columns of texts."""
WIDE, NARROW = (10.0, 4.2), (5.0, 3.0)

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #0f172a; background: #f8fafc; margin: 0 auto;
       max-width: 1080px; padding: 32px 20px; }
h1 { font-size: 26px; margin: 0 0 4px } h2 { font-size: 18px; margin: 32px 0 8px }
h3 { font-size: 15px; margin: 16px 0 4px; color: #475569 }
.note { color: #64748b; margin: 0 0 20px }
.card { background: #fff; border: 1px solid #e2e8f0; border-radius: 10px; padding: 14px 18px;
        overflow-x: auto; margin-bottom: 14px }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 14px;
        margin-top: 14px }
svg { width: 100%; height: auto; display: block }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid #f1f5f9; vertical-align: top }
th { color: #475569; font-weight: 600 } td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
h3 { overflow-wrap: anywhere; white-space: pre-wrap }
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
        parts += _validations(run, f": {escape(run.name)}" if len(runs) > 1 else "")
    for run in runs:
        heading = f": {escape(run.name)}" if len(runs) > 1 else ""
        parts += _profiles(run, heading)
        parts.append(f"<h2>Events{heading}</h2><div class='card'>{_events(run)}</div>")
        settings = _table(("key", "value"), changed_settings(run.config))
        parts.append(f"<h2>Settings that are not defaults{heading}</h2><div class='card'>{settings}</div>")
    return "".join([*parts, "</body></html>\n"])


def _curves(runs: Sequence[RunData]) -> Iterable[str]:
    if not runs:
        return
    rewarded = [run for run in runs if run.is_on_rewards]
    others = [run for run in runs if not run.is_on_rewards]
    yield "<h2>Curves</h2>"
    for draw, having in ((draw_reward, rewarded), (draw_loss, others)):
        if having:
            yield f"<div class='card'>{_svg(draw, having, WIDE)}</div>"
    yield "<div class='grid'>"
    for draw in reward_pictures(rewarded):
        yield f"<div class='card'>{_svg(draw, rewarded, NARROW)}</div>"
    for column, draw in CURVES.items():
        having = [run for run in runs if run.is_ever(column)]
        if having:
            yield f"<div class='card'>{_svg(draw, having, NARROW)}</div>"
    compared = [run for run in runs if is_on_preferences(run)]
    for draw in preference_pictures(compared) if compared else []:
        yield f"<div class='card'>{_svg(draw, compared, NARROW)}</div>"
    for name in dict.fromkeys(name for run in others for name in metric_names(run)):
        having = [run for run in others if name in metric_names(run)]
        if compared and name in DRAWN:
            having = [run for run in having if not is_on_preferences(run)]
        if not having:
            continue
        yield f"<div class='card'>{_svg(validation_curve(name), having, NARROW)}</div>"
    yield "</div>"
    for run in rewarded:
        if seconds_of_parts(run):
            yield f"<div class='grid'><div class='card'>{_svg(draw_parts_of_steps, [run], WIDE)}</div></div>"
    trading = [run for run in runs if trade(run) is not None]
    if trading:
        yield f"<div class='grid'><div class='card'>{_svg(draw_trade, trading, WIDE)}</div></div>"


def _validations(run: RunData, heading: str) -> Iterable[str]:
    """What a run's validations tell, as far as there is more than a loss."""
    figures = figures_table(run)
    if figures is not None:
        yield f"<h2>Figures{heading}</h2><div class='card'>{_table(*figures)}</div>"
    told = calibration(run)
    if told is not None:
        picture, table = _svg(draw_calibration, [run], (5.5, 4.2)), _table(*calibration_table(told))
        yield f"<h2>Calibration{heading}</h2><div class='grid'><div class='card'>{picture}</div>"
        yield f"<div class='card'>{table}</div></div>"
    if any(event.details.keys() & {"metrics", "forgetting", "samples"} for event in run.validations):
        table = _table(*validation_table(run))
        yield f"<h2>Validations{heading}</h2><div class='card'>{table}</div>"
    found = confusion(run)
    if found is not None:
        size = (6.0, 4.2) if len(found.labels) <= MOST_WITH_COUNTS else (9.0, 7.0)
        picture, table = _svg(draw_confusion, [run], size), _table(*label_table(found))
        yield f"<h2>Labels{heading}</h2><div class='grid'><div class='card'>{picture}</div>"
        yield f"<div class='card'>{table}</div></div>"
    texts = samples(run)
    if texts:
        yield f"<h2>Samples{heading}</h2>"
    for prompt, table in texts.items():
        yield f"<div class='card'><h3>{escape(prompt)}</h3>{_table(*table)}</div>"
    learned = training_samples(run)
    if learned is not None:
        yield f"<h2>Samples of the training{heading}</h2><div class='card'>{_table(*learned)}</div>"


def _profiles(run: RunData, heading: str) -> Iterable[str]:
    if run.profiles:
        yield f"<h2>Where the time of a step goes{heading}</h2>"
    for found in run.profiles:
        yield f"<div class='card'>{_svg(profile_picture(found), [run], WIDE)}</div>"
        yield f"<div class='card'><h3>Milliseconds a step</h3>{_table(*kind_table(found))}</div>"
        yield f"<div class='card'><h3>{SLOWEST}</h3>{_table(*slowest_table(found))}"
        yield f"<h3>{LARGEST}; {escape(peak(found))}</h3>{_table(*memory_table(found))}</div>"


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
    body = "".join(f"<tr>{_cells(heads, row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cells(heads: Sequence[str], row: Sequence[str]) -> str:
    """What people or models have written stands line by line."""
    return "".join(
        f"<td><pre>{escape(text)}</pre></td>" if head in TEXTS else f"<td>{escape(text)}</td>"
        for head, text in zip(heads, row, strict=True)
    )
