"""The language model of one pipeline chunk: Megatron's GPTModel with positions and output of our own."""

from typing import Any

import torch
import torch.distributed
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from llmscale.config.schema import ModelSection
from llmscale.model.declaration import ParameterDeclaration
from llmscale.model.documents import Documents
from llmscale.model.families.family import Family
from llmscale.model.head import ScoreHead
from llmscale.model.linear import ColumnParallelLinear, no_initialization
from llmscale.model.rotary import RotaryTable
from llmscale.parallel.world import World
from llmscale.plan.activations import LARGEST_LOGITS


class LanguageModel(GPTModel):
    """One chunk of the model on this rank.

    The last chunk returns logits [S, B, V / tensor ranks], padding columns included, or [C, 1, V / tensor
    ranks] of the C tokens that it is asked for; where these would be too large (`leaves_logits`), the hidden
    states that they are made of, [S, B, H] or [C, 1, H]; where it has a head for them, scores [S, B,
    outputs]. Every other one returns hidden states [S, B, H] (its part of S under sequence parallelism).
    """

    def __init__(
        self,
        model: ModelSection,
        family: Family,
        world: World,
        vocabulary_size: int,
        rotary: RotaryTable | None,
        **megatron: Any,
    ) -> None:
        super().__init__(**megatron)
        self.model_section = model
        self.family = family
        self.world = world
        self.true_vocabulary_size = vocabulary_size
        """Rows of the embedding that are no padding."""
        self.rotary_table = rotary
        self.score: ScoreHead | None = None
        """On the last chunk of a model that tells something of texts, in place of the output layer."""
        self.has_whole_weights = True
        """Not under ZeRO-3, which gathers those of a layer while that layer is called."""
        self.first_position = 0
        """Position of a document's first token; above 0 after a prefix."""
        self.anchor: torch.nn.Parameter | None = None
        """Gives a chunk without trainable parameters a gradient, of 0: its backward pass must happen."""
        self.added: dict[str, ParameterDeclaration] = {}
        """Declarations of parameters that were put in from outside, by local name."""

    def setup_embeddings_and_output_layer(self) -> None:
        """The output layer is one of ours. Nothing else: initial weights depend on the tensor's name only, so
        tied copies begin equal, and the engine sums their gradients."""
        if not self.post_process:
            return
        del self.output_layer
        self.output_layer = ColumnParallelLinear(
            self.config.hidden_size,
            self.vocab_size,
            config=self.config,
            init_method=no_initialization,
            bias=False,
            skip_weight_param_allocation=self.pre_process and self.share_embeddings_and_output_weights,
            gather_output=False,
            tp_group=self.pg_collection.tp,
        )

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        tokens_BS: Tensor,
        position_ids_BS: Tensor,
        documents: Documents | None = None,
        counted_C: Tensor | None = None,
    ) -> Tensor:
        """Logits, scores or hidden states, see the class.

        Args:
            tokens_BS: int64; read by the first chunk, whose input they are.
            position_ids_BS: int64, positions within their document.
            documents: of packed rows; None where each row is one.
            counted_C: places in [S, B] of the tokens whose logits are wanted; None: of all.
        """
        hidden = self.hidden_states(tokens_BS, position_ids_BS, documents)
        if not self.post_process:
            return hidden
        if self.score is not None:
            return self.score(hidden)
        if self.leaves_logits(tokens_BS.numel() if counted_C is None else len(counted_C)):
            whole_SBH = self._whole(hidden)
            return whole_SBH if counted_C is None else _places(whole_SBH, counted_C)
        if counted_C is None:
            return self.logits(hidden)
        if self.config.sequence_parallel:  # the output layer needs this rank's part of the sequence
            return _places(self.logits(hidden), counted_C)
        return self.logits(_places(hidden, counted_C))

    def leaves_logits(self, tokens: int) -> bool:
        """Whether the logits of so many tokens are left to the loss, which makes them a few at a time: then
        the last chunk returns hidden states."""
        columns = self.vocab_size // self.world.tensor_group.size()
        is_plain = self.has_whole_weights and not self.output_layer._forward_hooks
        return is_plain and tokens * columns > LARGEST_LOGITS

    def _whole(self, hidden_SBH: Tensor) -> Tensor:
        """Of the whole sequence, on every tensor rank; what each knows of their gradient is summed."""
        if self.config.sequence_parallel:
            return gather_from_sequence_parallel_region(hidden_SBH, group=self.world.tensor_group)
        return copy_to_tensor_model_parallel_region(hidden_SBH, group=self.world.tensor_group)

    def hidden_states(
        self, tokens_BS: Tensor, position_ids_BS: Tensor, documents: Documents | None = None
    ) -> Tensor:
        """What the chunk's layers (and, on the last one, the final norm) make of its input."""
        position_ids_BS = position_ids_BS + self.first_position if self.first_position else position_ids_BS
        hidden = None
        if self.pre_process:
            hidden = self.embedding(input_ids=tokens_BS, position_ids=position_ids_BS)
            if self.config.recompute_granularity == "full" and torch.is_grad_enabled():
                # With frozen embeddings nothing else would tell the checkpoints that there is a gradient.
                hidden = hidden if hidden.requires_grad else hidden.requires_grad_()
        rotary = None
        if self.rotary_table is not None:
            rotary = self.rotary_table.at(position_ids_BS, self.config.params_dtype)
        hidden = self.decoder(
            hidden_states=hidden, attention_mask=None, rotary_pos_emb=rotary, packed_seq_params=documents
        )
        return hidden if self.anchor is None else hidden + 0 * self.anchor

    def logits(self, hidden_SBH: Tensor) -> Tensor:
        """The last chunk's: logits of hidden states, [S, B, V / tensor ranks]."""
        weight = self.output_weight if self.share_embeddings_and_output_weights else None
        logits_SBV, _ = self.output_layer(hidden_SBH, weight=weight)
        return logits_SBV

    @property
    def output_weight(self) -> Tensor:
        """Of the last chunk's output layer, [V / tensor ranks, H]; of the embedding where they are tied."""
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()
        assert self.output_layer.weight is not None
        return self.output_layer.weight

    def gathered_logits(self, hidden_SBH: Tensor) -> Tensor | None:
        """The last chunk's: logits over the whole vocabulary, without its padding, [S, B, V] on tensor rank
        0; None on the other tensor ranks. No gradient. Collective over them."""
        local_SBV = self.logits(hidden_SBH).contiguous()
        group = self.world.tensor_group
        if group.size() == 1:
            return local_SBV[..., : self.true_vocabulary_size]
        parts = [torch.empty_like(local_SBV) for _ in range(group.size())] if group.rank() == 0 else None
        torch.distributed.gather(local_SBV, parts, group=group, group_dst=0)
        return torch.cat(parts, dim=-1)[..., : self.true_vocabulary_size] if parts else None


def _places(values_SBX: Tensor, places_C: Tensor) -> Tensor:
    """[C, 1, X]."""
    return values_SBX.flatten(0, 1).index_select(0, places_C)[:, None]
