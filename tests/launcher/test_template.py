"""The strict renderer: what it refuses, and that bash reads back exactly what was put in."""

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llmscale_launcher.template import Lines, TemplateError, Words, render

TEXTS = st.text(st.characters(blacklist_characters="\x00", blacklist_categories=("Cs",)), max_size=40)


def test_kinds_of_values() -> None:
    template = "#SBATCH @OPTION@\nrun=@RUN@\nargs=(@ARGS@)\n"
    values = {"OPTION": Lines(("-a", "-b")), "RUN": "my run", "ARGS": Words(("x", "a b", "$c"))}
    assert render(template, values) == "#SBATCH -a\n#SBATCH -b\nrun='my run'\nargs=(x 'a b' '$c')\n"


def test_no_lines_leave_nothing() -> None:
    assert render("a\nexport @EXPORT@\nb", {"EXPORT": Lines(())}) == "a\nb"


def test_a_placeholder_without_a_value_is_an_error() -> None:
    with pytest.raises(TemplateError, match="without a value: NAME, OTHER"):
        render("@OTHER@ @NAME@ @KNOWN@", {"KNOWN": "x"})


def test_lines_stand_alone() -> None:
    with pytest.raises(TemplateError, match="one placeholder only"):
        render("@A@ @B@", {"A": Lines(("x",)), "B": "y"})


def test_values_are_not_templates() -> None:
    values = {"A": "@B@", "B": "@A@", "C": Lines(("@A@", "@UNKNOWN@"))}
    assert render("@A@ @B@\n@C@\n", values) == "@B@ @A@\n@A@\n@UNKNOWN@\n"


@settings(max_examples=40, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=5), TEXTS)
def test_bash_reads_what_was_put_in(words: list[str], text: str) -> None:
    script = render(
        'words=(@WORDS@)\ntext=@TEXT@\nprintf \'%s\\0\' "$text" "${words[@]}"\n',
        {"WORDS": Words(tuple(words)), "TEXT": text},
    )
    # A carriage return is a character like any other to bash, but not to Python's universal line ends.
    done = subprocess.run(["bash"], input=script.encode(), capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == [text, *words]
