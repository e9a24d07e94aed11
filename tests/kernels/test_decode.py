"""Attention of one token to a cache against plain softmax in float64."""

import pytest
import torch
from llmscale_kernels.decode import decode, fits
from torch import Tensor


def plain(query_BND: Tensor, keys_BKTD: Tensor, values_BKTD: Tensor, seen_BT: Tensor) -> Tensor:
    group = query_BND.shape[1] // keys_BKTD.shape[1]
    keys, values = (x.repeat_interleave(group, dim=1).double() for x in (keys_BKTD, values_BKTD))
    scores_BNT = torch.einsum("bnd,bntd->bnt", query_BND.double(), keys) / query_BND.shape[-1] ** 0.5
    weights_BNT = scores_BNT.masked_fill(~seen_BT[:, None], -torch.inf).softmax(-1)
    return torch.einsum("bnt,bntd->bnd", weights_BNT, values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("prefix", "window"), [(0, None), (5, None), (0, 7), (5, 7)])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 4, 16), (6, 2, 48), (2, 1, 80)])
def test_equals_softmax(
    dtype: torch.dtype, prefix: int, window: int | None, heads: int, kv_heads: int, size: int
) -> None:
    torch.manual_seed(0)
    rows, places = 5, 60
    keys, values = (torch.randn(rows + 2, kv_heads, places, size).to(dtype) for _ in range(2))
    query = torch.randn(rows, heads, size).to(dtype)
    last_B = torch.tensor([prefix, prefix + 3, 31, 40, 59])
    places_T = torch.arange(places)
    seen_BT = places_T <= last_B[:, None]
    if window is not None:
        seen_BT &= (places_T > last_B[:, None] - window) | (places_T < prefix)
    assert fits(query, keys)
    # What is not seen must not matter, not even if it is no number.
    for row, last in enumerate(last_B.tolist()):
        keys[row, :, last + 1 :] = values[row, :, last + 1 :] = torch.nan
    new_key, new_value = keys[range(rows), :, last_B].clone(), values[range(rows), :, last_B].clone()
    for kept in (keys, values):
        kept[range(rows), :, last_B] = torch.nan
    output = decode(query, new_key, new_value, keys, values, last_B, prefix, window)
    assert torch.equal(keys[range(rows), :, last_B], new_key)
    assert torch.equal(values[range(rows), :, last_B], new_value)
    expected = plain(query, keys[:rows].nan_to_num(), values[:rows].nan_to_num(), seen_BT)
    assert output.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)


def test_what_the_kernel_does_not_take() -> None:
    cache = torch.zeros(2, 2, 8, 32)
    assert fits(torch.zeros(2, 2, 32), cache)
    assert not fits(torch.zeros(2, 2, 32), cache.transpose(2, 3))
    assert not fits(torch.zeros(2, 2, 24), torch.zeros(2, 2, 8, 24))
    assert not fits(torch.zeros(2, 2, 32).double(), cache.double())
