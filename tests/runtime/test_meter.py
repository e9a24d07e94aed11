"""Speed, utilisation and peak."""

import time
from pathlib import Path

import pytest
import torch
from llmscale_kernels import matmul
from torch import Tensor

from llmscale.runtime.meter import Meter, measured_peak, memory_bytes, peak_flops, table_peak

CPU = torch.device("cpu")


def test_rates_follow_from_the_time() -> None:
    meter = Meter(flops_per_token=6e6, peak_flops=1e10, device=CPU)
    time.sleep(0.05)
    speed = meter.stop(tokens=1000)
    assert 0.05 <= speed.step_seconds < 1
    assert speed.tokens_per_second == 1000 / speed.step_seconds
    assert speed.mfu == pytest.approx(6e9 / speed.step_seconds / 1e10)
    assert Meter(6e6, None, CPU).stop(1).mfu is None


def test_pause_is_not_counted() -> None:
    meter = Meter(1.0, None, CPU)
    time.sleep(0.2)
    meter.start()
    assert meter.stop(1).step_seconds < 0.2


def test_memory_grows_with_what_is_held() -> None:
    before = memory_bytes(CPU)
    held = torch.ones(50 * 2**20, dtype=torch.uint8)
    assert memory_bytes(CPU) - before > 40 * 2**20
    assert held.sum() == 50 * 2**20


def test_measured_peak_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = peak_flops(CPU, torch.float32)
    began = time.perf_counter()
    assert peak_flops(CPU, torch.float32) == first
    assert time.perf_counter() - began < 0.1
    assert first is not None and 1e9 < first < 1e14


def test_peak_is_of_products_that_any_library_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else training, whose products are as large, might be quicker than the peak."""
    rows: list[int] = []
    true = matmul.product

    def counted(input_XI: Tensor, weight_OI: Tensor) -> Tensor:
        rows.append(len(input_XI))
        return true(input_XI, weight_OI)

    monkeypatch.setattr(matmul, "product", counted)
    measured_peak(torch.float32)
    assert min(rows) >= matmul.ROWS_OF_A_THREAD * torch.get_num_threads()


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
    ],
)
def test_table_takes_the_longest_name(name: str, teraflops: float) -> None:
    assert table_peak(name) == teraflops * 1e12


def test_unknown_device_has_no_peak() -> None:
    assert table_peak("Voodoo 2") is None
