"""Norms that work under sequence parallelism.

Megatron's torch norm refuses it, because there each tensor rank normalises only its part of the
sequence and gets only a part of the weight's gradient. Here that gradient is summed where it arises.
"""

from typing import overload

import torch
from llmscale_kernels.norm import add_and_layer_norm, add_and_rms_norm, layer_norm, rms_norm
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.distributed import ProcessGroup

from llmscale.parallel.partial import sum_gradient


class Norm(torch.nn.Module):
    """RMSNorm, or LayerNorm where `config.normalization` says so.

    Args:
        tensor_group: the tensor ranks, each of which holds the whole weight.
        partial_gradient: each of them applies it to a part of the activations only.
    """

    def __init__(
        self,
        config: TransformerConfig,
        hidden_size: int,
        eps: float,
        tensor_group: ProcessGroup,
        partial_gradient: bool,
    ) -> None:
        super().__init__()
        self.epsilon = eps
        self.tensor_group = tensor_group
        self.partial_gradient = partial_gradient
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        has_bias = config.normalization == "LayerNorm"
        self.bias = (
            torch.nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype)) if has_bias else None
        )

    @overload
    def forward(self, hidden: Tensor) -> Tensor: ...

    @overload
    def forward(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]: ...

    def forward(self, hidden: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Of `hidden`; or of `residual + hidden`, and that sum."""
        weight = self._whole(self.weight)
        if self.bias is None:
            if residual is None:
                return rms_norm(hidden, weight, self.epsilon)
            return add_and_rms_norm(hidden, residual, weight, self.epsilon)
        bias = self._whole(self.bias)
        if residual is None:
            return layer_norm(hidden, weight, bias, self.epsilon)
        return add_and_layer_norm(hidden, residual, weight, bias, self.epsilon)

    def _whole(self, parameter: Tensor) -> Tensor:
        return sum_gradient(parameter, self.tensor_group) if self.partial_gradient else parameter
