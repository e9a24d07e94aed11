"""Norms that work under sequence parallelism.

Megatron's torch norm refuses it, because there each tensor rank normalises only its part of the
sequence and gets only a part of the weight's gradient. Here that gradient is summed where it arises.
"""

import torch
from llmscale_kernels.norm import layer_norm, rms_norm
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

    def forward(self, hidden: Tensor) -> Tensor:
        if self.bias is None:
            return rms_norm(hidden, self._whole(self.weight), self.epsilon)
        return layer_norm(hidden, self._whole(self.weight), self._whole(self.bias), self.epsilon)

    def _whole(self, parameter: Tensor) -> Tensor:
        return sum_gradient(parameter, self.tensor_group) if self.partial_gradient else parameter
