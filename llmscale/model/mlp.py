"""Feed-forward layer: column-parallel, activation, row-parallel."""

from typing import Any

import torch.nn.functional as F
from llmscale_kernels.swiglu import swiglu
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.distributed import ProcessGroup

from llmscale.model.linear import ColumnParallelLinear, RowParallelLinear, no_initialization


class FeedForward(MegatronModule):
    """SwiGLU where `config.gated_linear_unit`, else GELU in its tanh form."""

    def __init__(self, config: TransformerConfig, tensor_group: ProcessGroup) -> None:
        super().__init__(config)
        width: int = config.ffn_hidden_size  # pyright: ignore[reportAssignmentType]
        self.linear_fc1 = ColumnParallelLinear(
            config.hidden_size,
            2 * width if config.gated_linear_unit else width,
            config=config,
            init_method=no_initialization,
            bias=config.add_bias_linear,
            tp_group=tensor_group,
        )
        self.linear_fc2 = RowParallelLinear(
            width,
            config.hidden_size,
            config=config,
            init_method=no_initialization,
            bias=config.add_bias_linear,
            input_is_parallel=True,
            skip_bias_add=True,
            tp_group=tensor_group,
        )

    def forward(self, hidden_SBH: Tensor, **_: Any) -> tuple[Tensor, Tensor | None]:
        """Output [S, B, H] and the bias to add to it."""
        inner, _ = self.linear_fc1(hidden_SBH)
        inner = swiglu(inner) if self.config.gated_linear_unit else F.gelu(inner, approximate="tanh")
        return self.linear_fc2(inner)
