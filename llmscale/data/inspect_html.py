"""An inspection as one HTML file that needs no other."""

from html import escape

from llmscale.data.inspect_examples import Inspection, Sample, ShownText, ShownToken

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
td { padding: .1rem 1rem .1rem 0; vertical-align: top; }
.bar { background: light-dark(#7aa7d9, #3f6ea5); height: .8rem; }
.suspicious { border-left: 4px solid #c77700; padding-left: 1rem; }
.sample { white-space: pre-wrap; overflow-wrap: anywhere; font: 14px/1.7 ui-monospace, monospace;
  border: 1px solid light-dark(#ccc, #555); border-radius: 6px; padding: .7rem; }
.sample span { border-radius: 3px; box-shadow: inset 0 0 0 1px light-dark(#0002, #fff2); }
.learned { background: light-dark(#c4ecc9, #1e5b2c); }
.rejected { background: light-dark(#f6c9c4, #6f231c); }
.read { color: light-dark(#666, #aaa); }
.special { font-weight: bold; text-decoration: underline dotted; }
.sample span:empty { padding: 0 .12rem; }
""".strip()


def inspection_page(title: str, found: Inspection) -> str:
    """The whole page."""
    facts = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in found.facts
    )
    doubts = "".join(f"<li>{escape(doubt)}</li>" for doubt in found.suspicious) or "<li>nothing</li>"
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1><table>{facts}</table>",
            f"<h2>Suspicious</h2><ul class=suspicious>{doubts}</ul>",
            f"<h2>Lengths in tokens</h2><table>{_bars(found)}</table>",
            f"<h2>Samples</h2><p>{_legend(found)}</p>",
            *(_sample(sample) for sample in found.samples),
            "</body></html>\n",
        ]
    )


def _legend(found: Inspection) -> str:
    kinds = [("learned", "learned"), ("read", "only read"), ("special", "special token")]
    if found.compares:
        kinds[:1] = [("learned", "better, or right"), ("rejected", "worse, or wrong")]
    return " ".join(f'<span class="{kind}">{said}</span>' for kind, said in kinds)


def _bars(found: Inspection) -> str:
    most = max((count for _, count in found.lengths), default=1)
    return "".join(
        f"<tr><td>{name}</td><td>{count:,}</td>"
        f'<td><div class=bar style="width:{20 * count / most:.2f}rem"></div></td></tr>'
        for name, count in found.lengths
    )


def _sample(sample: Sample) -> str:
    return f"<h3>{escape(sample.title)}</h3>" + "".join(map(_text, sample.texts))


def _text(shown: ShownText) -> str:
    title = f"<p>{escape(shown.title)}</p>" if shown.title else ""
    learned = "rejected" if shown.rejected else "learned"
    tokens = "".join(_token(token, learned if token.learned else "read") for token in shown.tokens)
    return f"{title}<div class=sample>{tokens}</div>"


def _token(token: ShownToken, kind: str) -> str:
    text = escape(token.text).replace("\n", "↵\n")
    kind = f'"{kind} special"' if token.special else kind
    return f'<span class={kind} title="{token.id}">{text}</span>'
