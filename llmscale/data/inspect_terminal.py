"""An inspection on a terminal."""

from rich.console import Console
from rich.text import Text

from llmscale.data.inspect_examples import Inspection, ShownText, ShownToken

LEARNED = ("black on green", "black on bright_green")
REJECTED = ("black on red", "black on bright_red")
READ = ("", "on bright_black")
"""In turns, so that one sees where a token ends."""
BAR = 40


def show_inspection(found: Inspection, console: Console) -> None:
    """Lengths, doubts and samples; in plain text what is learned stands in ⟦brackets⟧, a worse answer in
    ⟪others⟫."""
    most = max((count for _, count in found.lengths), default=1)
    for name, count in found.lengths:
        bar = "█" * round(BAR * count / most)
        console.print(f"{name:>16} tokens {count:>8,} {bar}", highlight=False)
    console.print(f"\nSuspicious: {'' if found.suspicious else 'nothing'}", style="bold")
    for doubt in found.suspicious:
        console.print(f"  • {doubt}", style="yellow", markup=False, highlight=False)
    for number, sample in enumerate(found.samples):
        console.rule(f"sample {number}: {sample.title}")
        for shown in sample.texts:
            if shown.title:
                console.print(f"{shown.title}:", style="bold", markup=False, highlight=False)
            console.print(_colored(shown) if console.is_terminal else _bracketed(shown))


def _colored(shown: ShownText) -> Text:
    text, learned = Text(), REJECTED if shown.rejected else LEARNED
    for place, token in enumerate(token for token in shown.tokens if token.text):
        style = (learned if token.learned else READ)[place % 2]
        text.append(_visible(token), f"bold underline {style}" if token.special else style)
    return text


def _bracketed(shown: ShownText) -> Text:
    text, is_open = Text(), False
    opening, closing = "⟪⟫" if shown.rejected else "⟦⟧"
    for token in shown.tokens:
        if token.learned != is_open:
            text.append(opening if token.learned else closing)
            is_open = token.learned
        text.append(_visible(token))
    return text.append(closing) if is_open else text


def _visible(token: ShownToken) -> str:
    return token.text.replace("\n", "↵\n").replace("\t", "→")
