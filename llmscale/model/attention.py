"""Self-attention of one layer: fused query-key-value projection, rotary positions, scaled dot product.

Shapes: S sequence, B batch, N heads of this tensor rank, K key-value heads of this rank, D head size,
H hidden size.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from llmscale_kernels import attention
from llmscale_kernels.rotary import rotate, split_and_rotate
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llmscale.model.cache import Beginnings, KeyValueCache, NextTokens
from llmscale.model.documents import Documents
from llmscale.model.linear import ColumnParallelLinear, RowParallelLinear, no_initialization

Prefix = tuple[Tensor, Tensor]
"""Learned keys and values, [P, K, D] each."""


class SelfAttention(MegatronModule):
    """The rows of the fused projection are this rank's queries, then its keys, then its values."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        pg_collection: ProcessGroupCollection,
        query_key_norm: ModuleSpec | None,
        sliding_window: int | None,
    ) -> None:
        super().__init__(config)
        self.layer_number = layer_number
        self.sliding_window = sliding_window
        self.cache: KeyValueCache | None = None
        """Set while generating."""
        self.prefix: Callable[[], Prefix] | None = None
        """Set by prefix tuning: gives what every token sees before its document's own."""
        tensor_ranks = pg_collection.tp.size()
        key_value_heads = config.num_query_groups or config.num_attention_heads
        self.head_size: int = config.kv_channels  # pyright: ignore[reportAttributeAccessIssue]
        self.heads = config.num_attention_heads // tensor_ranks
        self.kv_heads = key_value_heads // tensor_ranks
        self.linear_qkv = ColumnParallelLinear(
            config.hidden_size,
            (config.num_attention_heads + 2 * key_value_heads) * self.head_size,
            config=config,
            init_method=no_initialization,
            bias=config.add_qkv_bias,
            tp_group=pg_collection.tp,
        )
        self.linear_proj = RowParallelLinear(
            config.num_attention_heads * self.head_size,
            config.hidden_size,
            config=config,
            init_method=no_initialization,
            bias=config.add_bias_linear,
            input_is_parallel=True,
            skip_bias_add=True,
            tp_group=pg_collection.tp,
        )
        if query_key_norm is not None:
            sizes = {"config": config, "hidden_size": self.head_size, "eps": config.layernorm_epsilon}
            self.q_layernorm = build_module(query_key_norm, **sizes)
            self.k_layernorm = build_module(query_key_norm, **sizes)
        else:
            self.q_layernorm = self.k_layernorm = None

    def forward(
        self,
        hidden_SBH: Tensor,
        attention_mask: None,
        rotary_pos_emb: Tensor | None,
        packed_seq_params: Documents | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Output [S, B, H] (its own part of S under sequence parallelism) and the bias to add to it.

        Args:
            hidden_SBH: the layer's normalised input.
            attention_mask: always None: attention is causal.
            rotary_pos_emb: cosines and sines, [2, S, B or 1, D]; None for learned positions.
            packed_seq_params: the documents of packed rows (the name is Megatron's).
        """
        query, key, value = self._project(hidden_SBH, rotary_pos_emb)
        coming = None if self.cache is None else self.cache.coming
        if self.cache is not None and isinstance(coming, NextTokens):
            return self.linear_proj(self.cache.attend(query, key, value, coming))
        prefix = None if self.prefix is None else self.prefix()
        if self.cache is not None and isinstance(coming, Beginnings):
            self.cache.begin(key, value, prefix, coming)
        if self.config.recompute_granularity == "selective" and self.training:
            attended = checkpoint(
                self._attend_documents, query, key, value, packed_seq_params, prefix, use_reentrant=False
            )
        else:
            attended = self._attend_documents(query, key, value, packed_seq_params, prefix)
        return self.linear_proj(attended)

    def _project(self, hidden_SBH: Tensor, rotary: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [S, B, N, D], keys and values [S, B, K, D], normalised and turned."""
        mixed, _ = self.linear_qkv(hidden_SBH)
        mixed = mixed.view(*mixed.shape[:2], -1, self.head_size)
        if rotary is not None and self.q_layernorm is None:
            return split_and_rotate(mixed, self.heads, self.kv_heads, rotary[0], rotary[1])
        query, key, value = mixed.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        if self.q_layernorm is not None and self.k_layernorm is not None:
            query, key = self.q_layernorm(query), self.k_layernorm(key)
        if rotary is not None:
            query, key = rotate(query, rotary[0], rotary[1]), rotate(key, rotary[0], rotary[1])
        return query, key, value

    def _attend_documents(
        self, query: Tensor, key: Tensor, value: Tensor, documents: Documents | None, prefix: Prefix | None
    ) -> Tensor:
        dropout = self.config.attention_dropout if self.training else 0.0
        if prefix is None and not dropout and attention.fits(query):
            sequence, rows = query.shape[:2]
            documents = documents or Documents(((sequence,),) * rows)
            cuts = (documents.lengths, self.sliding_window, documents.before)
            return attention.attention(query, key, value, *cuts).flatten(2)
        attend = partial(self._attend, prefix=prefix)
        return attend(query, key, value) if documents is None else documents.attend(query, key, value, attend)

    def _attend(
        self, query_SBND: Tensor, key_SBKD: Tensor, value_SBKD: Tensor, prefix: Prefix | None
    ) -> Tensor:
        """Causal attention: [S, B, N × D]."""
        queries = len(query_SBND)
        mask = self._mask(queries, query_SBND.device)
        if prefix is not None:
            key_SBKD, value_SBKD = (
                torch.cat((before_PKD[:, None].expand(-1, own.shape[1], -1, -1), own))
                for before_PKD, own in zip(prefix, (key_SBKD, value_SBKD))
            )
            mask = _seen_after_prefix(mask, queries, len(key_SBKD), query_SBND.device)
        attended_BNSD = F.scaled_dot_product_attention(
            query_SBND.permute(1, 2, 0, 3),
            key_SBKD.permute(1, 2, 0, 3),
            value_SBKD.permute(1, 2, 0, 3),
            attn_mask=mask,
            dropout_p=self.config.attention_dropout if self.training else 0.0,
            is_causal=mask is None,
            enable_gqa=self.heads != self.kv_heads,
        )
        return attended_BNSD.permute(2, 0, 1, 3).flatten(2)

    def _mask(self, queries: int, device: torch.device) -> Tensor | None:
        """Who may be seen, [queries, queries]; None where `is_causal` says it."""
        if not self.sliding_window or queries <= self.sliding_window:
            return None
        seen = torch.ones(queries, queries, dtype=torch.bool, device=device).tril()
        return seen.triu(1 - self.sliding_window)


def _seen_after_prefix(mask: Tensor | None, queries: int, keys: int, device: torch.device) -> Tensor:
    """`mask` of a document's own keys, after those of the prefix, which all see: [queries, keys]."""
    if mask is None:
        mask = torch.ones(queries, queries, dtype=torch.bool, device=device).tril()
    return torch.cat((mask.new_ones((queries, keys - queries)), mask), dim=-1)
