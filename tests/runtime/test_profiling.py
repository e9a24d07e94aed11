"""What a trace adds up to: kinds of operations, every moment once, and whose memory it is."""

import ast
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from torch.profiler import record_function

from llmscale.runtime.describe import describe_event
from llmscale.runtime.events import read_events
from llmscale.runtime.hooks import Hooks, RunStart, StepRecord
from llmscale.runtime.profiling.breakdown import Breakdown, break_down
from llmscale.runtime.profiling.files import read_breakdown, read_breakdowns, write_breakdown
from llmscale.runtime.profiling.hook import ProfileHook
from llmscale.runtime.profiling.kinds import FUNCTIONS, OPERATIONS, kind_of
from llmscale.runtime.profiling.tables import kind_table, shown
from tests.architecture.sources import SOURCES

NAMES = {
    "aten::mm": "matrix products",
    "aten::addmm": "matrix products",
    "aten::baddbmm": "matrix products",
    "mkldnn::_linear_pointwise": "matrix products",
    "aten::scaled_dot_product_attention": "attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": "attention",
    "aten::_efficient_attention_backward": "attention",
    "llmscale::attention_backward": "attention",
    "llmscale::decode": "attention",
    "llmscale::rms_norm": "norms",
    "llmscale::swiglu_backward": "activation",
    "_RMSNorm": "norms",
    "_RMSNormBackward": "norms",
    "aten::native_layer_norm_backward": "norms",
    "_SwiGLU": "activation",
    "aten::silu_backward": "activation",
    "aten::gelu": "activation",
    "_SplitAndRotateBackward": "rotary positions",
    "aten::embedding": "embedding",
    "aten::embedding_dense_backward": "embedding",
    "_CrossEntropy": "loss",
    "_LinearCrossEntropyBackward": "loss",
    "aten::_log_softmax_backward_data": "loss",
    "aten::mul_": "element-wise and sums",
    "aten::_foreach_add_": "element-wise and sums",
    "aten::native_dropout_backward": "element-wise and sums",
    "aten::_softmax": "element-wise and sums",
    "aten::linalg_vector_norm": "element-wise and sums",
    "aten::copy_": "copies and casts",
    "aten::_to_copy": "copies and casts",
    "aten::zero_": "copies and casts",
    "aten::cat": "copies and casts",
    "c10d::allreduce_": "communication",
    "c10d::_reduce_scatter_base_": "communication",
    "_c10d_functional::all_reduce": "communication",
    "gloo:send": "communication",
    "nccl:all_gather": "communication",
    "Optimizer.step#AdamW.step": "optimizer",
    "aten::_fused_adamw_": "optimizer",
    "aten::view": "other operations",
    "aten::index": "other operations",
    "aten::empty_strided": "other operations",
    "own::unheard_of": "other operations",
    "step": "outside operations",
    "forward-compute": "outside operations",
    "SumBackward0": "outside operations",
    "_ProductBackward": "outside operations",
    "autograd::engine::evaluate_function: SumBackward0": "outside operations",
    "torch::autograd::AccumulateGrad": "outside operations",
}


@pytest.mark.parametrize("name", NAMES)
def test_kind_of_a_name(name: str) -> None:
    assert kind_of(name) == NAMES[name]


def test_what_a_whole_is_made_of_counts_as_its_own() -> None:
    assert kind_of("aten::mul", "norms") == kind_of("aten::_to_copy", "norms") == "norms"
    assert kind_of("aten::bmm", "attention") == "attention"
    assert kind_of("aten::mm", "loss") == "matrix products", "it is the output layer's"
    assert kind_of("c10d::allreduce_", "loss") == kind_of("gloo:send", "optimizer") == "communication"


def test_no_name_has_two_kinds() -> None:
    names = [name for names in OPERATIONS.values() for name in names.split()]
    assert len(names) == len(set(names))


def test_every_function_of_ours_has_a_kind() -> None:
    """Products, and collectives, are told by the operations that they call."""
    ours = {
        node.name
        for source in SOURCES
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef) and any("autograd.Function" in ast.unparse(b) for b in node.bases)
    }
    assert ours - set(FUNCTIONS) == {"_Product", "_SumGradient", "_AddLowRank"}
    assert set(FUNCTIONS) - ours == {"_VocabParallelCrossEntropy"}, "this one is Megatron's"


def event(name: str, start: float, seconds: float, thread: int = 1, **more: Any) -> dict[str, Any]:
    """Of a trace, as torch writes it; times in microseconds."""
    operation = "::" in name or name.startswith("_")
    found = {"cat": "cpu_op" if operation else "user_annotation", "args": {}, **more}
    return {"ph": "X", "name": name, "ts": start, "dur": seconds, "tid": thread, **found}


def memory(at: float, size: int, total: int, device: int = 0) -> dict[str, Any]:
    told = {"Bytes": size, "Total Allocated": total, "Device Type": device}
    return {"ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "ts": at, "tid": 1, "args": told}


def taken(*events: dict[str, Any]) -> Breakdown:
    return break_down({"traceEvents": list(events)}, 3, 4, rank=0, stage=0)


TWO_STEPS = (
    event("step", 0, 100),
    event("data", 0, 10),
    event("forward-compute", 10, 40),
    event("_RMSNorm", 15, 20),
    event("aten::mul", 20, 5),
    event("aten::mm", 40, 8, args={"Input Dims": [[8, 4], [4, 2], []], "External id": 7}),
    event("update", 60, 30),
    event("forward-compute", 110, 50),  # between the steps: a validation
    event("aten::mm", 120, 30, args={"Input Dims": [[99], [99]]}),
    event("step", 200, 100),
)


def in_microseconds(found: Breakdown) -> dict[str, dict[str, float]]:
    return {
        phase: {kind: round(seconds * 1e6, 6) for kind, seconds in of_phase.items()}
        for phase, of_phase in found.seconds.items()
    }


def test_every_moment_of_the_steps_counts_once() -> None:
    """Half of each number: there are two steps, and the second one is nothing but Python."""
    found = taken(*TWO_STEPS)
    assert in_microseconds(found) == {
        "data": {"outside operations": 5.0},
        "forward": {"outside operations": 6.0, "norms": 10.0, "matrix products": 4.0},
        "update": {"outside operations": 15.0},
        "rest": {"outside operations": 60.0},
    }
    assert found.step_seconds == pytest.approx(100e-6)
    (product,) = [one for one in found.slowest if one.name == "aten::mm"]
    assert (product.shapes, product.calls) == ("[8, 4] [4, 2]", 0.5)
    assert product.seconds == pytest.approx(4e-6)


def test_the_order_of_the_file_does_not_matter() -> None:
    assert in_microseconds(taken(*reversed(TWO_STEPS))) == in_microseconds(taken(*TWO_STEPS))


def test_waiting_for_others_is_communication() -> None:
    """In no operation, whatever function of Python that is in; work that goes on meanwhile is work."""
    found = taken(
        event("step", 0, 100),
        event("c10d::allreduce_", 0, 2),
        event("gloo:all_reduce", 1, 59, thread=2, args={"Input Dims": [[[16]]]}),
        event("gloo:recv", 30, 40),  # on the same thread, and in no order with the rest
        event("aten::mm", 10, 20),
        event("_CrossEntropy", 50, 40),
    )
    assert in_microseconds(found) == {
        "rest": {"communication": 50.0, "matrix products": 20.0, "loss": 20.0, "outside operations": 10.0}
    }
    told = {one.name: one for one in found.slowest}
    assert told["gloo:all_reduce"].seconds == pytest.approx(38e-6)
    assert told["gloo:all_reduce"].shapes == "[16]"
    assert told["gloo:recv"].seconds == pytest.approx(10e-6)


def test_a_gpu_has_a_column_of_its_own() -> None:
    """Its kernels are told by the operation that started them, also from autograd's own thread."""
    evaluate = "autograd::engine::evaluate_function: MmBackward0"
    found = taken(
        *TWO_STEPS,
        event("backward-compute", 210, 80),
        event(evaluate, 220, 40, thread=5),
        event("aten::mm", 230, 10, thread=5, args={"External id": 8}),
        event("gemm", 15, 90, thread=9, cat="kernel", args={"External id": 7}),
        event("gemm", 235, 50, thread=9, cat="kernel", args={"External id": 8}),
        event("nccl:all_reduce", 210, 80, thread=9, cat="gpu_user_annotation"),
        memory(240, 64, 1 << 20, device=1),
    )
    assert found.device_seconds == {"matrix products": pytest.approx(70e-6)}
    assert in_microseconds(found)["backward"] == {"outside operations": 35.0, "matrix products": 5.0}
    assert found.peak_bytes == {"cuda": 1 << 20}
    heads, rows = kind_table(found)
    assert heads[-1] == "GPU" and dict(zip(heads, rows[-1]))["GPU"] == "0.07"


def test_memory_is_told_of_who_asks_for_it() -> None:
    found = taken(
        *TWO_STEPS,
        event("aten::empty", 21, 1),
        memory(21.5, 1000, 5000),
        memory(42, 64, 5064),
        memory(43, -64, 5000),
        memory(130, 1 << 30, 1 << 30),  # between the steps
    )
    sizes = {one.name: one.bytes for one in found.largest if one.bytes}
    assert sizes == {"aten::mul": 500.0, "aten::mm": 32.0}
    assert found.peak_bytes == {"cpu": 5064}


def test_a_trace_without_a_step_is_none() -> None:
    with pytest.raises(ValueError, match="no step"):
        taken(event("aten::mm", 0, 1))


def test_read_as_written_and_shown(tmp_path: Path) -> None:
    found = taken(*TWO_STEPS)
    (tmp_path / "profile").mkdir()
    path = write_breakdown(tmp_path, found)
    assert path.name == "steps-3-4-rank-0.json"
    assert read_breakdown(path) == found and read_breakdowns(tmp_path) == [found]
    console = Console(width=100, record=True, file=(tmp_path / "shown").open("w"))
    console.print(shown(found))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["Steps", "3–4", "of", "rank", "0:", "milliseconds", "a", "step"] in lines
    assert ["matrix", "products", "–", "0.00", "–", "–", "0.00", "4.0%"] in lines
    assert any(line[-1:] == ["100.0%"] for line in lines)


START = RunStart(step=0, steps=20, samples=0, tokens=0, world_size=1, parameters=1)


def hook(folder: Path, rank: int = 0) -> ProfileHook:
    return ProfileHook(folder, (3, 4), rank, 0, [], Hooks([]).on_phase)


def told(folder: Path) -> list[str]:
    return [describe_event(event.kind, event.step, event.details) for event in read_events(folder)]


def test_a_run_that_goes_on_after_the_steps_says_so(tmp_path: Path) -> None:
    late = RunStart(step=4, steps=20, samples=0, tokens=0, world_size=1, parameters=1)
    hook(tmp_path, rank=2).on_start(late)
    assert told(tmp_path) == []
    one = hook(tmp_path)
    one.on_start(late)
    one.on_end(20, preempted=False)
    assert told(tmp_path) == [
        "warning: nothing is profiled: train.profile=3:4, but the run goes on after step 4"
    ]


def test_steps_that_were_recorded_before_are_not_missed(tmp_path: Path) -> None:
    (tmp_path / "profile").mkdir()
    write_breakdown(tmp_path, taken(*TWO_STEPS))
    hook(tmp_path).on_start(RunStart(step=9, steps=20, samples=0, tokens=0, world_size=1, parameters=1))
    assert told(tmp_path) == []


def test_a_full_disk_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "profile").write_text("no folder")
    phases: list[str] = []
    one = ProfileHook(tmp_path, (3, 4), 0, 0, [], phases.append)
    one.on_start(RunStart(step=2, steps=20, samples=0, tokens=0, world_size=1, parameters=1))
    for step in (3, 4):
        with record_function("step"):
            pass
        one.on_step(StepRecord(step, 0, 0, 1.0, 1.0, 1.0, 1.0, 1.0, None))
    assert phases == ["saving", "training"]
    (line,) = told(tmp_path)
    assert line.startswith("warning: nothing is profiled") and "cannot be written to" in line


@pytest.mark.parametrize(("preempted", "lines"), [(True, 0), (False, 1)])
def test_a_run_that_ends_before_the_steps(tmp_path: Path, preempted: bool, lines: int) -> None:
    one = hook(tmp_path)
    one.on_start(START)
    one.on_end(2, preempted)
    assert len(told(tmp_path)) == lines, "one that was asked to stop goes on later"
