"""Causal attention of documents that lie one after the other in packed rows.

By a kernel of our own on CPUs where it is built, by FlashAttention and cuDNN on GPUs; the model asks torch
for one document after the other where neither takes the queries.

Shapes: S tokens of a row, B rows, N query heads, K key-value heads, D head size.
"""

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from llmscale_kernels.cpu import attention as cpu
from llmscale_kernels.documents import Lengths, documents_of


def fits(query_SBND: Tensor) -> bool:
    """Whether `attention` takes such queries."""
    return _computed_by(query_SBND).fits(query_SBND)


def attention(
    query_SBND: Tensor,
    key_SBKD: Tensor,
    value_SBKD: Tensor,
    lengths: Lengths,
    window: int | None = None,
    before: Lengths | None = None,
) -> Tensor:
    """softmax(query · keyᵀ / √D) · value of what each token sees: itself, what is before it in its document,
    and what that goes on from, [S, B, N, D].

    What comes out for a document does not depend on what else is in its row.

    Args:
        query_SBND: of those that `fits` says yes to; strides are free, but for the last dimension.
        lengths: of the documents of each row.
        window: how many tokens are seen, the own one included.
        before: of the documents, too. None: no document goes on from another one.
    """
    computed_by = _computed_by(query_SBND)
    return computed_by.attention(query_SBND, key_SBKD, value_SBKD, lengths, window, before)


def _computed_by(tensor: Tensor) -> ModuleType:
    if not tensor.is_cuda:
        return cpu
    from llmscale_kernels.gpu import attention as gpu  # noqa: PLC0415 -- only there is it needed

    return gpu


def attention_reference(
    query_SBND: Tensor,
    key_SBKD: Tensor,
    value_SBKD: Tensor,
    lengths: Lengths,
    window: int | None = None,
    before: Lengths | None = None,
) -> Tensor:
    """The same, with one mask over whole rows."""
    seen_BSS = torch.zeros(len(lengths), *[len(query_SBND)] * 2, dtype=torch.bool, device=query_SBND.device)
    for row, start, length, before_start, shared in documents_of(lengths, before, len(query_SBND)):
        queries = torch.arange(length)[:, None] + shared
        keys = torch.arange(shared + length)
        seen = (keys <= queries) & (keys > queries - (window or shared + length + 1))
        seen_BSS[row, start : start + length, before_start : before_start + shared] = seen[:, :shared]
        seen_BSS[row, start : start + length, start : start + length] = seen[:, shared:]
    attended_BNSD = F.scaled_dot_product_attention(
        query_SBND.permute(1, 2, 0, 3),
        key_SBKD.permute(1, 2, 0, 3),
        value_SBKD.permute(1, 2, 0, 3),
        attn_mask=seen_BSS[:, None],
        enable_gqa=query_SBND.shape[2] != key_SBKD.shape[2],
    )
    return attended_BNSD.permute(2, 0, 1, 3)
