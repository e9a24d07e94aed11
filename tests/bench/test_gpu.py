"""The benchmark for GPUs, as far as it goes without one: floors, data sheets, contenders, and the error."""

import math
import sys
from typing import Any

import pytest
import torch

import bench.gpu.__main__ as program
from bench.gpu import floors, training
from bench.gpu.ceilings import Ceilings
from bench.gpu.contenders import COMPILED, LIGER, LLMSCALE, TORCH, Sizes, operations
from bench.gpu.decode import WARM_UP_STEPS, Steps, Task
from bench.gpu.device import datasheet_flops_per_second
from bench.gpu.floors import Floor
from bench.gpu.operations import measured, report
from bench.workload import Workload
from llmscale.config.schema import ModelSection

CEILINGS = Ceilings(
    bytes_per_second=100.0, flops_per_second=1000.0, shape=(1, 1, 1), datasheet_flops_per_second=None
)
CPU = torch.device("cpu")
TINY = Sizes(
    rows=2, sequence=32, scored=16, hidden=32, features=64, heads=2, kv_heads=1, head_size=32, vocabulary=64
)


@pytest.mark.parametrize(
    ("floor", "numbers", "flops"),
    [
        (floors.norm(3, 5), 15 + 15 + (15 + 15 + 15), 0),
        (floors.norm_of_sum(3, 5), 30 + 30 + (45 + 15), 0),
        (floors.swiglu(2, 4), 16 + 8 + (16 + 8 + 16), 0),
        (floors.rotary(2, heads=3, kv_heads=1, head_size=4), (32 + 32) + (40 + 40), 0),
        (floors.cross_entropy(2, 10), 20 + (20 + 20), 0),
        # 2 tokens: 16 numbers of q and o, 8 of k and v; one sees 1 token, the other 2; 2 heads of size 4.
        (
            floors.attention(1, 2, heads=2, kv_heads=1, head_size=4),
            (16 + 8 + 8 + 16) + (16 + 8 + 8 + 16 + 16 + 16 + 8 + 8),
            6 * 2 * (1 + 2) * 2 * 4,
        ),
        (floors.linear_cross_entropy(2, 3, 5), (6 + 15) + (6 + 15) + (6 + 15), 3 * 2 * 2 * 3 * 5),
    ],
)
def test_floors_by_hand(floor: Floor, numbers: int, flops: float) -> None:
    assert floor == Floor(2 * numbers, flops)


@pytest.mark.parametrize("tied", [True, False])
def test_a_decoding_step_reads_each_weight_once(tied: bool) -> None:
    model = ModelSection(
        hidden_size=4, layers=1, heads=2, kv_heads=1, head_size=2, ffn_size=8, tie_embeddings=tied
    )
    weights = (4 * 4 + 2 * 4 * 2 + 4 * 4) + 3 * 4 * 8 + (2 * 4 + 4) + 10 * 4
    cache = 3 * 5 * (2 + 2)
    assert floors.decoding_step(model, 10, rows=3, tokens_behind=5) == Floor(2 * (weights + cache))


def test_the_slower_of_memory_and_products_is_the_floor() -> None:
    of_memory, of_products = Floor(200, 1000.0), Floor(200, 5000.0)
    assert [floor.seconds(CEILINGS) for floor in (of_memory, of_products)] == [2.0, 5.0]
    assert [floor.is_of_memory(CEILINGS) for floor in (of_memory, of_products)] == [True, False]


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_data_sheets_by_name(name: str, peak: float | None) -> None:
    assert datasheet_flops_per_second(name) == peak


def test_operations_agree_and_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for operation in operations(TINY, CPU):
        expected = operation.ways[TORCH].outputs()
        for way, work in operation.ways.items():
            if way == LIGER:  # where it is installed, it wants a GPU
                continue
            for ours, theirs in zip(work.outputs(), expected, strict=True):
                message = f"{operation.name} by {way}"
                assert torch.allclose(ours.float(), theirs.float(), rtol=0.03, atol=0.03), message
        rows.append(measured(operation, CEILINGS, rounds=1, turns=1, device=CPU))
    assert len(rows) == 9
    for row in rows:
        assert set(row["failures"]) <= {LIGER}
        assert {TORCH, LLMSCALE} <= set(row["ways"])
        assert (COMPILED in row["ways"]) == (not row["operation"].startswith("attention"))
        for found in row["ways"].values():
            assert all(math.isfinite(number) and number >= 0 for number in found.values())
    report(rows)
    assert "RMSNorm" in capsys.readouterr().out


def test_one_that_fails_costs_the_others_nothing() -> None:
    operation = next(operations(TINY, CPU))

    def fail(*_: torch.Tensor) -> torch.Tensor:
        raise ValueError("not on this device")

    operation.ways[COMPILED].function = fail
    row = measured(operation, CEILINGS, rounds=1, turns=1, device=CPU)
    assert row["failures"][COMPILED] == "ValueError: not on this device"
    assert {TORCH, LLMSCALE} <= set(row["ways"])
    assert list(program.failures([row])) == []
    assert list(program.failures([{"failures": {LLMSCALE: "planted"}}])) == ["planted"]


def test_sequences_at_a_time_grow_until_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {1: 10.0, 2: 30.0}

    def run_once(name: str, workload: Workload) -> dict[str, Any]:
        if workload.micro_batch_size not in speeds:
            raise RuntimeError(f"{name} failed (1):\ntorch.OutOfMemoryError: CUDA out of memory. Tried to …")
        return {"tokens_per_second": speeds[workload.micro_batch_size], "peak_memory_bytes": 1}

    monkeypatch.setattr(training, "run_once", run_once)
    sizes = [Workload("llama_6m", "bf16", micro_batch_size=size) for size in (1, 2, 4)]
    trial = training.tried_sizes("llmscale", sizes)
    trial.run_again()
    found = training.utilisation(trial, 10.0, CEILINGS)
    assert (found["micro_batch_size"], found["failure"]) == (2, training.OUT_OF_MEMORY)
    assert found["utilisation_of_measured_peak"] == 30.0 * 10.0 / 1000.0
    assert len(found["rounds"]) == 2
    assert training.utilisation(training.tried_sizes("llmscale", sizes[2:]), 10.0, CEILINGS) == {
        "failure": training.OUT_OF_MEMORY
    }


def test_steps_of_decoding() -> None:
    """The first tokens, of the prompts' step and of those after it, do not count."""
    task = Task(prompt=10, written=WARM_UP_STEPS + 3)
    steps = Steps([100.0] * WARM_UP_STEPS + [7.0, 9.0, 11.0])
    assert steps.mean_seconds == 2.0
    seen = [task.prompt + token for token in range(WARM_UP_STEPS + 1, task.written)]
    assert task.tokens_behind == sum(seen) / len(seen)
    with pytest.raises(RuntimeError, match="later than others"):
        steps([1, None])


@pytest.mark.parametrize(
    ("options", "message"),
    [([], "no CUDA device"), (["--device", "cpu"], "--device cpu --quick")],
    ids=["no GPU", "a whole run on a CPU"],
)
def test_says_what_to_do_without_a_gpu(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench.gpu", *options])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
