"""An inspection on a terminal."""

from rich.console import Console
from rich.text import Text

from llmscale.data.inspect_examples import Inspection, ShownToken

LEARNED = ("black on green", "black on bright_green")
READ = ("", "on bright_black")
"""In turns, so that one sees where a token ends."""
BAR = 40


def show_inspection(found: Inspection, console: Console) -> None:
    """Lengths, doubts and samples; in plain text what is learned stands in ⟦brackets⟧."""
    most = max((count for _, count in found.lengths), default=1)
    for name, count in found.lengths:
        bar = "█" * round(BAR * count / most)
        console.print(f"{name:>16} tokens {count:>8,} {bar}", highlight=False)
    console.print(f"\nSuspicious: {'' if found.suspicious else 'nothing'}", style="bold")
    for doubt in found.suspicious:
        console.print(f"  • {doubt}", style="yellow", markup=False, highlight=False)
    for number, sample in enumerate(found.samples):
        console.rule(f"sample {number}: {sample.title}")
        console.print(_colored(sample.tokens) if console.is_terminal else _bracketed(sample.tokens))


def _colored(tokens: list[ShownToken]) -> Text:
    text = Text()
    for place, token in enumerate(token for token in tokens if token.text):
        style = (LEARNED if token.learned else READ)[place % 2]
        text.append(_visible(token), f"bold underline {style}" if token.special else style)
    return text


def _bracketed(tokens: list[ShownToken]) -> Text:
    text, open_bracket = Text(), False
    for token in tokens:
        if token.learned != open_bracket:
            text.append("⟦" if token.learned else "⟧")
            open_bracket = token.learned
        text.append(_visible(token))
    return text.append("⟧") if open_bracket else text


def _visible(token: ShownToken) -> str:
    return token.text.replace("\n", "↵\n").replace("\t", "→")
