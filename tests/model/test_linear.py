"""The product of linear layers beside torch's, and what it keeps for backward."""

from typing import cast

import pytest
import torch
from torch import Tensor

from llmscale.model.linear import _Product

SEQUENCE, ROWS, INPUTS, OUTPUTS = 24, 2, 32, 48


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("learned", ["both", "input", "weight"])
def test_gradients_are_torchs_and_frozen_weights_keep_no_input(learned: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    input_SBI = torch.randn(SEQUENCE, ROWS, INPUTS).to(dtype).requires_grad_(learned != "weight")
    weight_OI = torch.randn(OUTPUTS, INPUTS).to(dtype).requires_grad_(learned != "input")
    gradient_SBO = torch.randn(SEQUENCE, ROWS, OUTPUTS).to(dtype)
    kept: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output_SBO = cast(Tensor, _Product.apply(input_SBI, weight_OI, None))
    assert ((SEQUENCE, ROWS, INPUTS) in kept) == (learned != "input"), kept
    output_SBO.backward(gradient_SBO)
    exact = [tensor.detach().double().requires_grad_() for tensor in (input_SBI, weight_OI)]
    exact_SBO = exact[0] @ exact[1].T
    exact_SBO.backward(gradient_SBO.double())
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    found = {"output": (output_SBO, exact_SBO)}
    for name, tensor, expected in zip(("input", "weight"), (input_SBI, weight_OI), exact, strict=True):
        assert (tensor.grad is not None) == tensor.requires_grad
        if tensor.grad is not None and expected.grad is not None:
            found[name] = tensor.grad, expected.grad
    assert len(found) == (3 if learned == "both" else 2)
    for ours, theirs in found.values():
        torch.testing.assert_close(
            ours.double(), theirs, rtol=tolerance, atol=tolerance * max(INPUTS, SEQUENCE * ROWS) ** 0.5
        )
