"""Attention of packed documents by what torch has for GPUs, without a mask.

Rows of one document each are given to scaled dot product attention as they are: to cuDNN's before
FlashAttention-2 where the GPU is a Hopper or newer one. Documents of other rows are laid end to end for
FlashAttention, which takes their places instead of a mask, in one call. FlashAttention-3 computes both where
it is installed (the module `flash_attn_interface`), on a Hopper.

In backward torch's FlashAttention adds atomically, so that two runs may differ in the last bit, unless
`torch.use_deterministic_algorithms` is on.
"""

import functools
import importlib.util
import inspect
from typing import Any, NamedTuple

import torch
import torch.nn.attention as torch_attention
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel, varlen

from llmscale_kernels.documents import Lengths, documents_of

HALVES = (torch.bfloat16, torch.float16)
WIDEST_HEAD = 256
HOPPER = 9
"""Major number of its compute capability; FlashAttention-2 is for 8, Ampere, and newer."""


def fits(query_SBND: Tensor) -> bool:
    """Whether `attention` takes such queries: FlashAttention does."""
    if not query_SBND.is_cuda or query_SBND.dtype not in HALVES:
        return False
    head_size = query_SBND.shape[-1]
    is_size = head_size % 8 == 0 and head_size <= WIDEST_HEAD
    return is_size and _generation(query_SBND.device) >= 8 and _takes_windows()


def attention(
    query_SBND: Tensor,
    key_SBKD: Tensor,
    value_SBKD: Tensor,
    lengths: Lengths,
    window: int | None,
    before: Lengths | None,
) -> Tensor:
    """As `llmscale_kernels.attention.attention`."""
    backends = _order(query_SBND.device)  # first: it decides, too, which FlashAttention torch has
    sequence = len(query_SBND)
    if all(row == (sequence,) for row in lengths) and (window is None or window >= sequence):
        return _of_rows(query_SBND, key_SBKD, value_SBKD, backends)
    places = _places(lengths, before, sequence, query_SBND.device)
    return of_documents(query_SBND, key_SBKD, value_SBKD, places, window)


def _of_rows(query_SBND: Tensor, key_SBKD: Tensor, value_SBKD: Tensor, order: list[SDPBackend]) -> Tensor:
    query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query_SBND, key_SBKD, value_SBKD))
    with sdpa_kernel(order, set_priority=True):
        attended_BNSD = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1]
        )
    return attended_BNSD.permute(2, 0, 1, 3)


class Places(NamedTuple):
    """Of documents that lie end to end, row after row, for FlashAttention."""

    query_ends: Tensor
    """0, then where each document ends among the queries, int32."""
    key_ends: Tensor
    """The same among the keys, where each has what it goes on from before its own."""
    most_queries: int
    most_keys: int
    keys: Tensor | None
    """Which token each key is of; None where no document goes on from another one."""


def of_documents(
    query_SBND: Tensor, key_SBKD: Tensor, value_SBKD: Tensor, places: Places, window: int | None
) -> Tensor:
    """The last of a document's queries sees the last of its keys, the one before it the one before, ..."""
    sequence, rows = query_SBND.shape[:2]
    query_TND, key_TKD, value_TKD = (
        tensor.transpose(0, 1).flatten(0, 1) for tensor in (query_SBND, key_SBKD, value_SBKD)
    )
    if places.keys is not None:
        key_TKD, value_TKD = (tensor.index_select(0, places.keys) for tensor in (key_TKD, value_TKD))
    attended_TND: Any = varlen.varlen_attn(
        *(query_TND, key_TKD, value_TKD),
        *(places.query_ends, places.key_ends, places.most_queries, places.most_keys),
        window_size=(window - 1 if window else -1, 0),
        enable_gqa=query_SBND.shape[2] != key_SBKD.shape[2],
    )
    return attended_TND.unflatten(0, (rows, sequence)).transpose(0, 1)


@functools.lru_cache(maxsize=64)
def _places(lengths: Lengths, before: Lengths | None, sequence: int, device: torch.device) -> Places:
    """All layers ask for the same ones.

    Raises:
        ValueError: as `documents_of`.
    """
    keys: list[Tensor] = []
    documents = list(documents_of(lengths, before, sequence))
    for document in documents:
        row = document.row * sequence
        for start, length in ((document.before_start, document.before), (document.start, document.length)):
            keys.append(torch.arange(row + start, row + start + length))
    query_lengths = [document.length for document in documents]
    key_lengths = [document.before + document.length for document in documents]
    return Places(
        query_ends=_ends(query_lengths).to(device),
        key_ends=_ends(key_lengths).to(device),
        most_queries=max(query_lengths),
        most_keys=max(key_lengths),
        keys=torch.cat(keys).to(device) if key_lengths != query_lengths else None,
    )


def _ends(lengths: list[int]) -> Tensor:
    return F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(torch.int32)


@functools.cache
def _order(device: torch.device) -> list[SDPBackend]:
    """Of who is asked first for whole rows."""
    flash_first = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    prefers_cudnn = _generation(device) >= HOPPER and not activated_flash_attention_3(device)
    rest = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return [*(reversed(flash_first) if prefers_cudnn else flash_first), *rest]


@functools.cache
def activated_flash_attention_3(device: torch.device) -> bool:
    """Hand torch's FlashAttention over to the third one, where it is installed and the GPU is a Hopper; tells
    whether it has."""
    is_there = importlib.util.find_spec("flash_attn_interface") is not None
    if not is_there or _generation(device) != HOPPER:
        return False
    torch_attention.activate_flash_attention_impl("FA3")
    return True


@functools.cache
def _generation(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0]


@functools.cache
def _takes_windows() -> bool:
    """Whether this torch's FlashAttention over documents knows windows and shared keys."""
    return {"window_size", "enable_gqa"} <= set(inspect.signature(varlen.varlen_attn).parameters)


def path_and_reason(device: torch.device) -> str:
    """Which path attention in bfloat16 takes on this GPU, for people."""
    if _generation(device) < 8:
        return "torch's, one document at a time (older than Ampere)"
    if not _takes_windows():
        return "torch's, one document at a time (its FlashAttention knows no windows)"
    if activated_flash_attention_3(device):
        return "FlashAttention-3 (flash_attn_interface is installed)"
    rows = "cuDNN for whole rows, " if _generation(device) >= HOPPER else ""
    return f"{rows}FlashAttention-2 (flash_attn_interface is not installed, or not a Hopper)"
