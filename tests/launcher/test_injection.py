"""Nothing in a config can run as a command or become a line of its own, but `setup`, which is shell."""

import json
import os
import shlex
import subprocess
from itertools import takewhile
from pathlib import Path

import pytest
from llmscale_launcher.backends.base import JobRequest
from llmscale_launcher.backends.slurm import SlurmBackend
from llmscale_launcher.batch_script import batch_script

from llmscale.config.load import load_config
from llmscale.config.problems import InputError
from llmscale.config.schema import Config
from tests.launcher.fake_scheduler import FakeScheduler

ATTACKS = [
    "$(touch canary)",
    "`touch canary`",
    "x; touch canary",
    "x' ; touch canary ; '",
    'x" ; touch canary ; "',
    "x\ntouch canary\n",
    "x\n#SBATCH --uid=0",
    "x && touch canary #",
    "x\\",
    "@FOLDER@",
    "-x --uid=0",
]
PLACES = {
    "partition": "cluster.partition={}",
    "account": "cluster.account={}",
    "qos": "cluster.qos={}",
    "constraint": "cluster.constraint={}",
    "exclude": "cluster.exclude=[{}]",
    "memory": "cluster.memory={}",
    "time": "cluster.time={}",
    "options": "cluster.options=[{}]",
    "python": "cluster.python={}",
    "variable": "cluster.environment.NAME={}",
    "image": "cluster.container={{image: {}, runtime: apptainer}}",
    "pyxis": "cluster.container.image={}",
    "mounts": "cluster.container={{image: x.sif, mounts: [{}]}}",
    "interface": "cluster.interface={}",
    "run-name": "run.name={}",
    "run-root": "run.root={}",
}
"""Key -> override with a place for a value."""
MUST_REFUSE = {
    "partition",
    "account",
    "qos",
    "constraint",
    "exclude",
    "memory",
    "time",
    "mounts",
    "interface",
    "run-name",
}
"""Keys of names, which no attack of the list is."""


def config_with(place: Path, *overrides: str) -> Config | None:
    """None where it is refused, by the config's rules or by the backend's."""
    try:
        config = load_config(place / "tiny.yaml", list(overrides))
    except InputError:
        return None
    return None if SlurmBackend().check(config) else config


@pytest.mark.parametrize("key", PLACES)
def test_no_value_is_run(place: Path, scheduler: FakeScheduler, key: str) -> None:
    taken: list[str] = []
    for attack in ATTACKS:
        config = config_with(place, PLACES[key].format(json.dumps(attack)))
        if config is not None:
            taken.append(attack)
            run_script(config, place)
            assert not list(place.rglob("canary")), attack
    assert not (key in MUST_REFUSE and taken), taken


@pytest.mark.parametrize("attack", ATTACKS)
def test_names_of_variables(place: Path, scheduler: FakeScheduler, attack: str) -> None:
    config = json.dumps({attack: "x"})
    assert config_with(place, f"cluster.environment={config}") is None


def run_script(config: Config, place: Path) -> None:
    """As SLURM would, from a folder where a canary would be seen."""
    folder = config.run_folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    script = batch_script(JobRequest(config, folder, directory=place))
    assert all(len(shlex.split(line)) == 2 for line in directives(script)), directives(script)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=place,
        env={**os.environ, "SLURM_JOB_ID": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def directives(script: str) -> list[str]:
    """What sbatch reads: it stops at the first line that is no comment."""
    head = takewhile(lambda line: line.startswith("#"), script.splitlines())
    return [line for line in head if line.startswith("#SBATCH")]


def test_a_canary_would_be_seen(place: Path, scheduler: FakeScheduler) -> None:
    config = config_with(place, "cluster.setup=[touch canary]")
    assert config is not None
    run_script(config, place)
    assert list(place.rglob("canary"))
