"""Batch scripts as they were last looked at, byte for byte; and as shellcheck and bash see them.

After a change on purpose: `LLMSCALE_WRITE_GOLDEN=1 pytest tests/launcher/test_golden.py`, and read what
has become of the files.
"""

import os
import subprocess
from pathlib import Path

import pytest
from llmscale_launcher.batch_script import script_values
from llmscale_launcher.template import placeholders, templates_folder

from tests.launcher.renderings import CLUSTERS, renderings, request

GOLDEN = Path(__file__).parent / "golden"
RENDERINGS = renderings()
TEMPLATES = sorted(templates_folder().glob("*.sbatch")) + sorted(templates_folder().glob("*.sh"))


@pytest.fixture(scope="session", autouse=True)
def _write_golden_files_if_asked() -> None:
    if not os.environ.get("LLMSCALE_WRITE_GOLDEN"):
        return
    GOLDEN.mkdir(exist_ok=True)
    for old in GOLDEN.glob("*.sbatch"):
        old.unlink()
    for name, script in RENDERINGS.items():
        (GOLDEN / f"{name}.sbatch").write_text(script)


@pytest.mark.parametrize("name", RENDERINGS)
def test_rendering_is_the_golden_one(name: str) -> None:
    assert RENDERINGS[name].encode() == (GOLDEN / f"{name}.sbatch").read_bytes()


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(RENDERINGS)


@pytest.mark.parametrize("name", RENDERINGS)
def test_rendering_is_bash(name: str) -> None:
    done = subprocess.run(["bash", "-n"], input=RENDERINGS[name], text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_directives_come_before_everything_else() -> None:
    """sbatch stops looking for them at the first line that is no comment."""
    for script in RENDERINGS.values():
        lines = script.splitlines()
        last = max(place for place, line in enumerate(lines) if line.startswith("#SBATCH"))
        assert all(line.startswith("#") for line in lines[: last + 1])


def test_every_value_has_its_place() -> None:
    """A key of the config whose placeholder got lost would be ignored in silence."""
    used = set[str]().union(*(placeholders(path.read_text()) for path in TEMPLATES))
    assert set(script_values(request("x", CLUSTERS["gpu-site"]))) - used == set()


@pytest.mark.cluster
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_template_passes_shellcheck(path: Path) -> None:
    done = subprocess.run(
        ["shellcheck", "--shell=bash", str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.cluster
def test_renderings_pass_shellcheck() -> None:
    """SC2016 and SC1091 ask about a user's own words: `$HOME` in single quotes, a file that is not here."""
    files = sorted(str(path) for path in GOLDEN.glob("*.sbatch"))
    assert shellcheck("--shell=bash", "--exclude=SC2016,SC1090,SC1091", *files) == (0, "")


def shellcheck(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(["shellcheck", *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout
