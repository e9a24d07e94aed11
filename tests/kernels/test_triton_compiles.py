"""Every kernel of Triton compiles for a GPU, on a machine that has none."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="pip has it for Linux on x86-64 only")
from llmscale_kernels.gpu import cross_entropy, norm, rotary, swiglu  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource, CompiledKernel  # noqa: E402

HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = {torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64"}
MODULES = (cross_entropy, norm, rotary, swiglu)
KERNELS = {
    f"{module.__name__}.{name}"
    for module in MODULES
    for name, value in vars(module).items()
    if isinstance(value, triton.JITFunction) and value.fn.__module__ == module.__name__
}


def compiled(kernel: Any, *arguments: Any, num_warps: int = 4, **constants: Any) -> CompiledKernel:
    """As a launch with these arguments would have it."""
    signature, values = {}, {}
    for name, value in inspect.signature(kernel.fn).bind(*arguments, **constants).arguments.items():
        if isinstance(value, Tensor):
            signature[name] = POINTERS[value.dtype]
        elif name in constants or value is None or value == 1:
            signature[name], values[name] = "constexpr", value
        else:
            signature[name] = "i32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=values)
    return triton.compile(source, target=HOPPER, options={"num_warps": num_warps})


def every_operation(dtype: torch.dtype, tokens: int, batch: int, columns: int) -> None:
    """Forward and backward of all of them, as far as the kernels: those compute nothing here."""
    hidden, weight = torch.ones(tokens, 96, dtype=dtype), torch.ones(96, dtype=dtype)
    hidden.requires_grad_()
    norm.rms_norm(hidden, weight, 1e-5).sum().backward()
    norm.layer_norm(hidden, weight, weight, 1e-5).sum().backward()
    torch.stack(norm.add_and_rms_norm(hidden, hidden, weight, 1e-5)).sum().backward()
    torch.stack(norm.add_and_layer_norm(hidden, hidden, weight, weight, 1e-5)).sum().backward()
    swiglu.swiglu(hidden).sum().backward()
    heads, angles = torch.ones(tokens, batch, batch, 64, dtype=dtype), torch.ones(tokens, 1, 64, dtype=dtype)
    for sign in (1, -1):
        rotary.turn(heads, angles, angles, torch.empty_like(heads), sign)
    labels = torch.zeros(tokens, dtype=torch.int64)
    logits = torch.ones(tokens, columns, dtype=dtype)
    for with_entropy in (False, True):
        found = cross_entropy.statistics(logits, labels, 0, columns, 0.7, with_entropy)
        entropy = (found[2], found[2]) if with_entropy else (None, None)
        cross_entropy.gradient_in_place(
            logits, labels, 0, columns, found[0], found[0], *entropy, temperature=0.7
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_kernels_compile_for_hopper(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found: dict[str, CompiledKernel] = {}

    def launch(kernel: Any, programs: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        name = f"{kernel.fn.__module__}.{kernel.fn.__name__}"
        found[name] = compiled(kernel, *arguments, **constants)
        assert ".target sm_90" in found[name].asm["ptx"]
        assert found[name].asm["cubin"].startswith(b"\x7fELF")

    for module in MODULES:
        monkeypatch.setattr(module, "launch", launch)
    every_operation(dtype, tokens=5, batch=2, columns=5000)
    # Triton compiles sizes of 1 into kernels: those of a text that is written, token by token.
    every_operation(dtype, tokens=1, batch=1, columns=1)
    assert set(found) == KERNELS
