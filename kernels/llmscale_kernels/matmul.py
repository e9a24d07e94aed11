"""The three matrix products of a linear layer, and the one with a weight that stays as it is for a while.

torch gives products on CPUs to MKL (float32) and oneDNN (bfloat16). On processors with AVX-512 that are not
Intel's, `cpu/matmul.py` is quicker at large ones of either type. At others of float32 oneDNN, which torch has
as well, is quicker than MKL at two of three: on four cores of an AMD EPYC (Zen 4) at 1.5 times its speed. The
third, the gradient of a weight, oneDNN gets only with copies, so it stays MKL's, but cut into one product a
thread: MKL shares a single one out badly there. Everything else is torch's own choice.

Which library computes depends on the processor, the number of threads, the type and the shape, never on a
measurement: a run that goes on has to compute what it would have.

Shapes: X any leading sizes, T all of them, I features in, O features out.
"""

import functools

import torch
from torch import Tensor

from llmscale_kernels.cpu import matmul as cpu
from llmscale_kernels.cpu.library import is_intel, processor_vendor

LEAST_ROWS = 32
"""With fewer, oneDNN's copy of the weight into its own order costs more than it brings."""
ROWS_OF_A_THREAD = 512
"""From which on our kernel's copy of the weight into its own order is paid for by what it brings."""
OUTPUTS_OF_A_THREAD = 192
"""From which on that is so of its copies of both factors of a weight's gradient."""
LEAST_OF_A_THREAD = 64
"""Rows of a weight's gradient that are worth a product of their own."""


def product(input_XI: Tensor, weight_OI: Tensor) -> Tensor:
    """`input @ weight.T`, [X, O]. No gradient: for autograd functions."""
    output_XO = _our_own(input_XI, weight_OI, right_is_transposed=True)
    if output_XO is not None:
        return output_XO
    if uses_onednn(input_XI):
        return _onednn(input_XI, weight_OI)
    return torch.matmul(input_XI, weight_OI.t())


def input_gradient(gradient_XO: Tensor, weight_OI: Tensor) -> Tensor:
    """`gradient @ weight`, [X, I]."""
    result_XI = _our_own(gradient_XO, weight_OI, right_is_transposed=False)
    if result_XI is not None:
        return result_XI
    if uses_onednn(gradient_XO):
        return _onednn(gradient_XO, weight_OI.t())
    return torch.matmul(gradient_XO, weight_OI)


def weight_gradient(gradient_XO: Tensor, input_XI: Tensor, onto_OI: Tensor | None = None) -> Tensor:
    """`gradient.T @ input` over all leading sizes, [O, I].

    Args:
        onto_OI: what it is added to in place, and returned; contiguous.
    """
    gradient_TO, input_TI = gradient_XO.flatten(0, -2), input_XI.flatten(0, -2)
    outputs, threads = gradient_TO.shape[-1], torch.get_num_threads()
    is_large = outputs >= OUTPUTS_OF_A_THREAD * threads and library(gradient_TO.dtype) == "llmscale"
    is_sum_of_it = onto_OI is None or onto_OI.dtype in (gradient_TO.dtype, torch.float32)
    if is_large and is_sum_of_it and cpu.fits(gradient_TO, input_TI, left_is_transposed=True):
        is_added = onto_OI is not None
        result_OI = onto_OI if is_added else gradient_TO.new_empty(outputs, input_TI.shape[-1])
        return cpu.multiply(gradient_TO, input_TI, result_OI, left_is_transposed=True, is_added=is_added)
    if onto_OI is not None and onto_OI.dtype != gradient_TO.dtype:
        return onto_OI.add_(weight_gradient(gradient_TO, input_TI))
    is_cut = threads > 1 and outputs % threads == 0 and outputs // threads >= LEAST_OF_A_THREAD
    if not (is_cut and uses_onednn(gradient_TO)):
        if onto_OI is not None:
            return onto_OI.addmm_(gradient_TO.t(), input_TI)
        return torch.mm(gradient_TO.t(), input_TI)
    parts_POT = gradient_TO.view(len(gradient_TO), threads, -1).permute(1, 2, 0)
    inputs_PTI = input_TI.expand(threads, -1, -1)
    if onto_OI is not None:
        onto_OI.view(threads, -1, onto_OI.shape[-1]).baddbmm_(parts_POT, inputs_PTI)
        return onto_OI
    return torch.bmm(parts_POT, inputs_PTI).view(outputs, -1)


def uses_onednn(input_XI: Tensor) -> bool:
    """Whether products of this tensor as the input are oneDNN's here, unless they are our own."""
    is_large = input_XI.numel() >= LEAST_ROWS * input_XI.shape[-1] > 0
    is_float = input_XI.dtype == torch.float32 and input_XI.device.type == "cpu"
    return is_large and is_float and onednn_is_quicker()


def differs_from_torch(input_XI: Tensor) -> bool:
    """Whether any product of a layer with this input may be another than torch's."""
    may_be_own = input_XI.device.type == "cpu" and library(input_XI.dtype) == "llmscale"
    return may_be_own or uses_onednn(input_XI)


@functools.cache
def library(dtype: torch.dtype) -> str:
    """Who is quickest at large products of this type on this machine's CPU: "llmscale", "oneDNN", or "torch",
    which is its own choice."""
    if cpu.is_quicker(dtype):
        return "llmscale"
    return "oneDNN" if dtype == torch.float32 and onednn_is_quicker() else "torch"


def pack(weight_OI: Tensor, rows: int) -> Tensor | None:
    """A copy of the weight in the order that products with about `rows` rows read it in; None where there is
    no such thing."""
    if weight_OI.device.type != "cpu" or weight_OI.dtype not in (torch.float32, torch.bfloat16):
        return None
    if not has_onednn() or not _is_native(weight_OI.dtype):
        return None
    return torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach().contiguous(), rows)


def packed_product(input_XI: Tensor, packed: Tensor) -> Tensor:
    """As `product`, of a weight that `pack` made. No gradient."""
    return _onednn(input_XI, packed)


def _our_own(left_XI: Tensor, right: Tensor, right_is_transposed: bool) -> Tensor | None:
    """`left @ right`, [X, O], the right factor as it is in memory; None where it is another library's."""
    if left_XI.dim() < 2 or left_XI.device.type != "cpu" or library(left_XI.dtype) != "llmscale":
        return None
    if left_XI.numel() < ROWS_OF_A_THREAD * torch.get_num_threads() * left_XI.shape[-1]:
        return None
    left_TI = left_XI.flatten(0, -2)
    if not cpu.fits(left_TI, right, right_is_transposed=right_is_transposed):
        return None
    result_XO = left_XI.new_empty(*left_XI.shape[:-1], right.shape[0 if right_is_transposed else 1])
    cpu.multiply(left_TI, right, result_XO.flatten(0, -2), right_is_transposed=right_is_transposed)
    return result_XO


def _onednn(input_XI: Tensor, weight_OI: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(input_XI, weight_OI, None, "none", [], "")


@functools.cache
def has_onednn() -> bool:
    """Whether this torch has the operations; it keeps them for its compiler."""
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
    )


@functools.cache
def onednn_is_quicker() -> bool:
    """Whether it is for products of float32: on x86 processors that are not Intel's."""
    return has_onednn() and processor_vendor() != "" and not is_intel()


def _is_native(dtype: torch.dtype) -> bool:
    return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
