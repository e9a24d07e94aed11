"""What llmscale is compared with has an interpreter of its own, and nothing of llmscale's that computes."""

import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from bench import peers
from tests.architecture.sources import REPOSITORY, SOURCES, Source, own_module

CONTENDERS = ("bench.transformers_loop", "bench.sft_trl", "bench.dpo_trl", "bench.grpo_trl")
COMPUTE = (
    "llmscale_kernels",
    "llmscale.model",
    "llmscale.engine",
    "llmscale.parallel",
    "megatron",
    "deepspeed",
)
HARMLESS = ("llmscale.model.huggingface", "llmscale.engine.learning_rate")
"""Names and numbers, without torch."""
BESIDE = [
    Source(f"{folder}.{path.stem}", path)
    for folder in ("bench", "tests")
    for path in sorted((REPOSITORY / folder).glob("*.py"))
]
FILES = {source.module: source for source in (*SOURCES, *BESIDE)}


def imported(module: str) -> dict[str, str]:
    """All that comes with a module's import, as far as files of the project tell: name -> who imports it."""
    found, waiting = {module: ""}, [module]
    while waiting:
        one = waiting.pop()
        for _, name in FILES[one].imports:
            own = own_module(name, set(FILES))
            if (own or name) not in found:
                found[own or name] = one
                waiting += [own] if own else []
    return found


def computing(module: str) -> Iterator[str]:
    for name, by in imported(module).items():
        if any(_is_in(name, one) for one in COMPUTE) and not any(_is_in(name, one) for one in HARMLESS):
            yield f"{name} (by {by})"


def _is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("module", CONTENDERS)
def test_contenders_of_peers_import_nothing_that_computes(module: str) -> None:
    assert list(computing(module)) == []


def test_an_own_contender_is_told_apart() -> None:
    assert "llmscale_kernels.matmul (by bench.matmul_peak)" in list(computing("bench.matmul_peak"))


def test_peers_have_their_own_interpreter_where_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "ENVIRONMENT", tmp_path)
    assert peers.interpreter() == sys.executable
    own = tmp_path / "bin" / "python"
    own.parent.mkdir()
    own.symlink_to(sys.executable)
    assert peers.interpreter() == str(own)


def test_peers_are_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "ENVIRONMENT", tmp_path)
    monkeypatch.setattr(peers, "LIBRARIES", ("torch", "no-such-library"))
    found = peers.described()
    assert found == {"interpreter": sys.executable, "torch": version("torch"), "no-such-library": None}


def test_all_programs_of_make_bench_have_the_same_options() -> None:
    recipe = (REPOSITORY / "Makefile").read_text().split("\nbench: ")[1].split("\n\n")[0]
    programs = re.findall(r"-m bench\.(\w+) \$\(BENCH_OPTIONS\)", recipe)
    assert len(programs) == 8
    lacking = [
        f"{program} {option}"
        for program in programs
        for option in ("--quick", "--rounds", "--output")
        if f'"{option}"' not in (REPOSITORY / "bench" / f"{program}.py").read_text()
    ]
    assert lacking == []
