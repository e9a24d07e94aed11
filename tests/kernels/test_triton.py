"""Triton's kernels compute what the formulas say: by its interpreter here, by the device where there is one.

The interpreter is chosen when kernels are imported, for a whole process: so these tests run in others.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from llmscale_kernels import dispatch
from llmscale_kernels.dispatch import path_and_reason, takes_triton

from tests.conftest import REPOSITORY

FOLDER = Path(__file__).parent
OPERATIONS = ("triton_operations.py",)
ALSO = ("test_kernels.py::test_equals_the_formula_and_its_gradient", "test_linear_cross_entropy.py")
"""Tests of whole operations that know nothing of who computes them."""
MODELS = ("../model/test_transformers_parity.py",)
"""Logits, losses and gradients of every family."""
UNLIKE = "test_the_whole_logits_are_never_there"
"""Sees what the interpreter keeps for itself, too."""


def run(names: tuple[str, ...], **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "--no-skips", "-p", "no:cacheprovider", "-k", f"not {UNLIKE}"]
    done = subprocess.run(
        [*command, *(str(FOLDER / name) for name in names)],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("names", [OPERATIONS, ALSO], ids=["sizes", "whole"])
def test_the_interpreter(names: tuple[str, ...]) -> None:
    run(names, TRITON_INTERPRET="1")


@pytest.mark.soak
def test_whole_models_by_the_interpreter() -> None:
    run(MODELS, TRITON_INTERPRET="1")


@pytest.mark.gpu
def test_the_device() -> None:
    run(OPERATIONS)


def test_cpus_never_load_triton() -> None:
    """Nor change who computes."""
    program = """
import sys, torch
from llmscale_kernels.cross_entropy import cross_entropy
from llmscale_kernels.linear_cross_entropy import Vocabulary, linear_cross_entropy
from llmscale_kernels.norm import layer_norm, rms_norm
from llmscale_kernels.rotary import rotate
from llmscale_kernels.swiglu import swiglu
x = torch.ones(4, 8, requires_grad=True)
heads, label = x.view(4, 1, 1, 8), torch.zeros(4, dtype=torch.int64)
found = [rms_norm(x, x[0], 1e-5), layer_norm(x, x[0], x[0], 1e-5), swiglu(x)]
found += [rotate(heads, x[:, None], x[:, None])]
found += [cross_entropy(x * 1, label, 0, 8), linear_cross_entropy(x, x * 2, label, Vocabulary(0, 4))[0]]
sum(one.sum() for one in found).backward()
assert "triton" not in sys.modules and "llmscale_kernels.gpu" not in sys.modules
"""
    environment = {name: value for name, value in os.environ.items() if name != dispatch.INTERPRETER}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


class OnGPU:
    """As much of a tensor as decides."""

    is_cuda = True


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One with Triton, of which no variable says anything."""
    for name, value in {"has_triton": True, "is_switched_off": False, "is_interpreted": False}.items():
        monkeypatch.setattr(dispatch, name, lambda value=value: value)
    return monkeypatch


def decision() -> tuple[bool, bool]:
    """Whether tensors on a CPU, and those on a GPU, go to Triton."""
    return takes_triton(torch.zeros(1)), takes_triton(OnGPU())  # pyright: ignore[reportArgumentType]


def test_gpus_take_triton(machine: pytest.MonkeyPatch) -> None:
    assert decision() == (False, True)
    assert path_and_reason(has_gpu=False) == "those for CPUs (no CUDA device)"
    assert path_and_reason(has_gpu=True).startswith("Triton ")


def test_gpus_without_triton_take_torch(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(dispatch, "has_triton", lambda: False)
    assert decision() == (False, False)
    assert path_and_reason(has_gpu=True) == "torch (Triton is not installed)"


def test_the_interpreter_takes_cpus(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(dispatch, "is_interpreted", lambda: True)
    assert decision() == (True, True)
    assert path_and_reason(has_gpu=False).endswith("in its interpreter (TRITON_INTERPRET=1)")


def test_a_variable_switches_it_off(machine: pytest.MonkeyPatch) -> None:
    for name in ("is_switched_off", "is_interpreted"):
        machine.setattr(dispatch, name, lambda: True)
    assert decision() == (False, False)
    assert path_and_reason(has_gpu=True) == "torch (LLMSCALE_TRITON=0)"
