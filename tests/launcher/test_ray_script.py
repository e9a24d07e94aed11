"""The two batch scripts: what both do they do in the same words."""

import re

from llmscale_launcher.template import templates_folder

OWN = {"pass_on", "job_field", "note_requeue", "another_turn"}
FUNCTION = re.compile(r"^(\w+)\(\) \{\n.*?^\}\n", re.MULTILINE | re.DOTALL)


def template(name: str) -> str:
    return (templates_folder() / name).read_text()


def functions(name: str) -> dict[str, str]:
    return {found[1]: found[0] for found in FUNCTION.finditer(template(name))}


def between(name: str, first: str, last: str) -> str:
    text = template(name)
    return text[text.index(first) : text.index(last)]


def test_shared_functions_are_the_same() -> None:
    train, ray = functions("train.sbatch"), functions("ray.sbatch")
    assert train.keys() >= OWN and ray.keys() >= OWN
    assert {name: train[name] for name in OWN} == {name: ray[name] for name in OWN}


def test_the_way_up_to_the_training_is_the_same() -> None:
    for first, last in (
        ("# Environment and setup lines", "# Runs "),
        ("turns=${SLURM_RESTART_COUNT", 'asked to stop before training began" ""\nfi\n'),
    ):
        assert between("train.sbatch", first, last) == between("ray.sbatch", first, last)
