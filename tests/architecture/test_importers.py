"""What only one place may import, what the torch-free side must not load, and where imports may stand."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.sources import SOURCES, Source

HEAVY = ("torch", "deepspeed", "megatron", "transformers", "datasets", "pandas", "pyarrow", "ray", "wandb")

ONLY_IMPORTERS = {
    "deepspeed": ("llmscale.engine", "llmscale.parallel.groups", "llmscale.run.build_ops"),
    "megatron.core.parallel_state": ("llmscale.parallel",),
    "megatron.core.mpu": (),
    # The CPU shim mends Megatron's schedules; only the engine runs them.
    "megatron.core.pipeline_parallel": ("llmscale.engine", "llmscale.parallel.device"),
    "ray": ("llmscale_launcher.ray", "llmscale.rlhf.workers"),
    "wandb": ("llmscale.runtime",),
    "datasets": ("llmscale.data",),
    "triton": ("llmscale_kernels.gpu",),
}

TORCH_FREE = ("llmscale.config", "llmscale.plan", "llmscale_launcher", "llmscale.cli")


OPTIONAL = ("wandb", "datasets", "pyarrow", "zstandard", "matplotlib", "ray", "llmscale_kernels.gpu")
"""What a run may do without, and which is therefore imported only where it is asked for."""


def within(name: str, parents: tuple[str, ...]) -> bool:
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


@pytest.mark.parametrize("library", ONLY_IMPORTERS)
def test_single_importers(library: str) -> None:
    strangers = [
        f"{source.module}:{line} imports {name}"
        for source in SOURCES
        for line, name in source.imports
        if within(name, (library,)) and not within(source.module, ONLY_IMPORTERS[library])
    ]
    assert strangers == []


def heavy_modules_after(statements: str) -> list[str]:
    """Which of HEAVY are loaded in a fresh process that ran `statements`."""
    script = (
        f"{statements}\nimport sys\nprint('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


def test_config_plan_launcher_and_command_line_load_nothing_heavy() -> None:
    modules = [source.module for source in SOURCES if within(source.module, TORCH_FREE)]
    assert "llmscale.config.schema" in modules
    assert heavy_modules_after("\n".join(f"import {module}" for module in modules)) == []


def test_help_loads_nothing_heavy() -> None:
    statements = (
        "import sys, llmscale.cli\n"
        "sys.argv = ['llmscale', '--help']\n"
        "try:\n    llmscale.cli.main()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    )
    assert heavy_modules_after(statements) == []


def test_the_probe_sees_torch() -> None:
    assert heavy_modules_after("import torch") == ["torch"]


def late_imports(source: Source) -> Iterator[str]:
    """Imports inside functions, other than of OPTIONAL, wherever the linter was told to look away."""
    inside = {
        node.lineno
        for function in ast.walk(source.tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    for line, name in source.imports:
        if line in inside and not within(name, OPTIONAL):
            yield f"{source.module}:{line} imports {name}"


def test_imports_stand_at_the_head_of_the_file() -> None:
    on_demand = ("llmscale.cli", "llmscale.commands")
    late = [
        line for source in SOURCES if not within(source.module, on_demand) for line in late_imports(source)
    ]
    assert late == []


def test_the_rule_sees_a_planted_late_import(tmp_path: Path) -> None:
    path = tmp_path / "planted.py"
    path.write_text("def f():\n    import wandb\n    import json\n")
    assert list(late_imports(Source("llmscale.train.planted", path))) == [
        "llmscale.train.planted:3 imports json"
    ]
