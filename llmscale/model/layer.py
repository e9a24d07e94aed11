"""A transformer layer: attention and feed-forward, each after a norm and added to what went in.

Megatron's layer with a forward pass of its own: without dropout the sum after attention and the norm of it
are one operation.

Shapes: S sequence, B batch, H hidden size; under sequence parallelism S is this rank's part.
"""

from typing import Any

import torch.nn.functional as F
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from llmscale.model.documents import Documents
from llmscale.model.norm import Norm


class Layer(TransformerLayer):
    input_layernorm: Norm
    pre_mlp_layernorm: Norm

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: None = None,
        rotary_pos_emb: Tensor | None = None,
        packed_seq_params: Documents | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """The layer's output, [S, B, H], and Megatron's context, which is of encoders only.

        Args:
            hidden_states: [S, B, H]; the names are Megatron's.
            attention_mask, rotary_pos_emb, packed_seq_params: see `SelfAttention.forward`.
        """
        attended = self.self_attention(
            self.input_layernorm(hidden_states),
            attention_mask,
            rotary_pos_emb=rotary_pos_emb,
            packed_seq_params=packed_seq_params,
        )
        normalised, hidden_states = self.pre_mlp_layernorm(self._to_add(*attended), hidden_states)
        return hidden_states + self._to_add(*self.mlp(normalised)), None

    def _to_add(self, output: Tensor, bias: Tensor | None) -> Tensor:
        output = output if bias is None else output + bias
        return F.dropout(output, self.hidden_dropout) if self.training and self.hidden_dropout else output
