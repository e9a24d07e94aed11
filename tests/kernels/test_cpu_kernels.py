"""The C++ kernels: built, chosen by processor, equal to the formulas; torch computes where there are none."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from llmscale_kernels import norm, rotary, sampling, swiglu
from llmscale_kernels.cpu import build, library
from llmscale_kernels.cpu import cross_entropy as compiled_cross_entropy
from llmscale_kernels.cpu import sampling as compiled_sampling
from llmscale_kernels.cross_entropy import cross_entropy
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16]


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 3e-2}


def angles(positions: int, size: int, rows: int = 1) -> tuple[Tensor, Tensor]:
    angle = torch.randn(positions, rows, size // 2, dtype=torch.float64).repeat(1, 1, 2)
    return angle.cos(), angle.sin()


COSINE, SINE = angles(9, 64)

OPERATIONS = {
    "rms_norm": (
        lambda x, w: norm.rms_norm(x, w, 1e-5),
        lambda x, w: norm.rms_norm_reference(x, w, 1e-5),
        [(150, 2, 48), (48,)],
        "_CompiledRMSNormBackward",
    ),
    "swiglu": (swiglu.swiglu, swiglu.swiglu_reference, [(70, 3, 96)], "_CompiledSwiGLUBackward"),
    "rotate": (
        lambda x: rotary.rotate(x, COSINE.to(x), SINE.to(x)),
        lambda x: rotary.rotate_reference(x, COSINE.to(x), SINE.to(x)),
        [(9, 2, 3, 64)],
        "_RotateBackward",
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_equals_the_formula_in_float64(name: str, dtype: torch.dtype) -> None:
    operation, reference, shapes, way = OPERATIONS[name]
    torch.manual_seed(0)
    inputs = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    output, expected = operation(*inputs), reference(*wide)
    assert type(output.grad_fn).__name__ == way
    weights = torch.randn_like(output)
    ours = torch.autograd.grad(output, inputs, weights)
    theirs = torch.autograd.grad(expected, wide, weights.double())
    for a, b in zip((output, *ours), (expected, *theirs), strict=True):
        assert a.dtype == dtype
        largest = max(1.0, float(b.detach().abs().max()))
        torch.testing.assert_close(a.double() / largest, b / largest, **tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_queries_and_keys_are_turned_and_values_are_not(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    cosine, sine = (x.to(dtype) for x in angles(7, 32, rows=3))
    mixed = torch.randn(7, 3, 8, 32).to(dtype).requires_grad_()
    query, key, value = rotary.split_and_rotate(mixed, 4, 2, cosine, sine)
    expected = rotary.rotate_reference(mixed.double()[:, :, :6], cosine.double(), sine.double())
    torch.testing.assert_close(torch.cat((query, key), dim=2).double(), expected, **tolerance(dtype))
    assert torch.equal(value, mixed[:, :, 6:])
    weights = torch.randn_like(expected)
    (turned_back,) = torch.autograd.grad((query, key), mixed, weights.to(dtype).split([4, 2], dim=2))
    wanted = rotary.rotate_reference(weights.to(dtype).double(), cosine.double(), -sine.double())
    torch.testing.assert_close(turned_back[:, :, :6].double(), wanted, **tolerance(dtype))
    assert not turned_back[:, :, 6:].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("columns", "width"), [(96, 96), (37, 37), (61, 64), (5, 8), (0, 16)])
def test_cross_entropy_of_a_part_of_the_vocabulary(dtype: torch.dtype, columns: int, width: int) -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(70, width)).to(dtype)
    labels = torch.randint(-20, 120, (70,))
    mine = (labels >= 0) & (labels < columns)
    log_sums, label_logits, _ = compiled_cross_entropy.statistics(logits, labels + 1000, 1000, columns)
    wide = logits.double()[:, :columns]
    torch.testing.assert_close(log_sums.double(), torch.logsumexp(wide, 1), rtol=1e-6, atol=1e-6)
    picked = wide[torch.arange(70)[mine], labels[mine]]
    assert torch.equal(label_logits[mine].double(), picked)
    assert not label_logits[~mine].any()
    gradient, elsewhere = torch.randn(70), log_sums.clamp_min(0) + 0.5
    expected = torch.zeros(70, width, dtype=torch.float64)
    expected[:, :columns] = (wide - elsewhere.double()[:, None]).exp()
    expected[torch.arange(70)[mine], labels[mine]] -= 1
    expected *= gradient.double()[:, None]
    compiled_cross_entropy.gradient_in_place(logits, labels, 0, columns, elsewhere, gradient)
    torch.testing.assert_close(logits.double(), expected, **tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropy_and_temperature(dtype: torch.dtype, temperature: float) -> None:
    torch.manual_seed(0)
    logits = (2 * torch.randn(40, 64)).to(dtype)
    logits[3, 5] = -torch.inf
    labels, of_losses, of_entropies = torch.randint(0, 50, (40,)), torch.randn(40), torch.randn(40)
    wide = logits.double()[:, :50].requires_grad_()
    logarithms = (wide / temperature).log_softmax(-1)
    losses = -logarithms.gather(1, labels[:, None])[:, 0]
    entropies = -(logarithms.exp() * logarithms.clamp_min(-1e4)).sum(-1)
    (expected,) = torch.autograd.grad((losses * of_losses + entropies * of_entropies).sum(), wide)
    log_sums, label_logits, found = compiled_cross_entropy.statistics(
        logits, labels + 7, 7, 50, temperature, with_entropy=True
    )
    torch.testing.assert_close((log_sums - label_logits).double(), losses.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.double(), entropies.detach(), rtol=1e-5, atol=1e-5)
    compiled_cross_entropy.gradient_in_place(
        logits, labels + 7, 7, 50, log_sums, of_losses, found, of_entropies, temperature
    )
    torch.testing.assert_close(logits[:, :50].double(), expected, **tolerance(dtype))
    assert not logits[:, 50:].any()


def test_a_second_backward_pass_is_refused() -> None:
    logits = torch.randn(4, 16, requires_grad=True)
    loss = cross_entropy(logits * 1, torch.arange(4), 0, 16).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_cross_entropy_far_from_zero_and_not_a_number() -> None:
    logits = torch.tensor([[1e4, 0, -1e4], [-1e30, -1e30, -1e30], [0, torch.nan, 1], [-torch.inf, 2, 3]])
    loss = cross_entropy(logits.clone(), torch.tensor([2, 1, 0, 2]), 0, 3)
    assert loss[0] == 2e4
    assert loss[1] == pytest.approx(math.log(3)) or loss[1] == 0  # 1e30 + log 3 is 1e30
    assert loss[2].isnan()
    torch.testing.assert_close(loss[3], F.cross_entropy(logits[3:], torch.tensor([2])))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_a_number_stays_none(dtype: torch.dtype) -> None:
    for operation, _, shapes, _ in OPERATIONS.values():
        inputs = [torch.randn(shape).to(dtype) for shape in shapes]
        inputs[0][1] = torch.nan
        assert operation(*inputs)[1].isnan().all()
        assert not operation(*inputs)[0].isnan().any()


def test_bfloat16_is_rounded_as_torch_rounds_it() -> None:
    torch.manual_seed(0)
    wide = torch.cat((torch.randn(4000), torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1e-40, -torch.inf, 3e38])))
    wide = F.pad(wide, (0, -len(wide) % 48)).view(-1, 48)
    ones = torch.ones(48)
    scaled = wide.bfloat16()
    exact = norm.rms_norm(scaled.float(), ones, 1e-5)
    rounded = norm.rms_norm(scaled, ones.bfloat16(), 1e-5)
    torch.testing.assert_close(rounded, exact.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("vocabulary", "temperature"), [(5, 1.0), (1000, 0.7), (1024, 2.0)])
def test_weights_of_tokens_are_those_of_torch(
    vocabulary: int, temperature: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    # A part of a wider tensor, as the logits of one position of several are; one token that cannot come.
    logits_BV = (9 * torch.randn(6, 2 * vocabulary)).to(dtype)[:, :vocabulary]
    logits_BV[2, 3] = -torch.inf
    weights, sums = sampling.token_weights(logits_BV, temperature, 128)
    monkeypatch.setattr(compiled_sampling, "fits", lambda *_: False)
    expected, expected_sums = sampling.token_weights(logits_BV.double(), temperature, 128)
    assert weights.shape == expected.shape and weights.dtype == torch.float32
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(sums, expected_sums, rtol=1e-5, atol=1e-12)
    assert weights[2, 3] == 0 and (weights.amax(dim=-1) == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("used", ["both", "norm", "sum"])
def test_norm_of_a_sum(used: str, dtype: torch.dtype) -> None:
    """The same to the bit as a sum and its norm, and so are its gradients but for one rounding less."""
    torch.manual_seed(0)
    inputs = [torch.randn(shape).to(dtype).requires_grad_() for shape in ((150, 2, 48), (150, 2, 48), (48,))]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    found = norm.add_and_rms_norm(*inputs, 1e-5)
    assert type(found[0].grad_fn).__name__ == "_CompiledRMSNormBackward"
    total = inputs[0] + inputs[1]
    assert torch.equal(found[1], total) and torch.equal(found[0], norm.rms_norm(total, inputs[2], 1e-5))
    sum_wide = wide[0] + wide[1]
    expected = norm.rms_norm_reference(sum_wide, wide[2], 1e-5), sum_wide
    chosen = {"both": slice(2), "norm": slice(1), "sum": slice(1, 2)}[used]
    weights = [torch.randn_like(x) for x in found]
    losses = [
        sum(((x * w.to(x.dtype)).sum() for x, w in zip(outputs[chosen], weights[chosen])), torch.tensor(0.0))
        for outputs in (found, expected)
    ]
    ours = torch.autograd.grad(losses[0], inputs, allow_unused=True)
    theirs = torch.autograd.grad(losses[1], wide, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a.double(), b, **tolerance(dtype))


def test_norm_of_a_sum_of_different_kinds() -> None:
    """Kernels would read the residual's memory as what it is not."""
    hidden, weight = torch.randn(4, 2, 48, dtype=torch.bfloat16), torch.ones(48, dtype=torch.bfloat16)
    for residual in (torch.randn(4, 2, 48), torch.randn(1, 2, 48, dtype=torch.bfloat16)):
        normalised, total = norm.add_and_rms_norm(hidden, residual, weight, 1e-5)
        assert torch.equal(total, hidden + residual)
        assert torch.equal(normalised, norm.rms_norm(total, weight, 1e-5))


@pytest.mark.parametrize("name", ["rms_norm", "swiglu"])
def test_threads_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "LEAST_OF_THREADS", 0)
    operation, _, shapes, _ = OPERATIONS[name]
    torch.manual_seed(0)
    inputs = [torch.randn(shape).requires_grad_() for shape in shapes]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            output = operation(*inputs)
            found.append((output, *torch.autograd.grad(output.square().sum(), inputs)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_library_of_this_processor_is_built_and_taken() -> None:
    """The other tests would pass without it."""
    assert library.choice().library == build.folder() / f"{next(iter(levels()))}.so"
    assert library.loaded() is not None


def levels() -> list[str]:
    flags = set(Path("/proc/cpuinfo").read_text().split("flags", 1)[1].splitlines()[0].split())
    return [level for level, wanted in build.LEVELS.items() if flags.issuperset(wanted.split())]


def test_an_older_processor_takes_the_lower_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_processor_flags", lambda: {"avx2", "bmi2", "f16c", "fma", "sse"})
    assert library.choice().library == build.folder() / "x86-64-v3.so"
    monkeypatch.setattr(library, "_processor_flags", lambda: {"sse"})
    assert library.choice() == library.Choice(None, "this processor has no AVX2, for which they are written")


def test_a_library_of_other_sources_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in build.SOURCES.iterdir():
        if source.suffix in (".cpp", ".h"):
            (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    assert library.choice().library is not None
    with (tmp_path / "norm.cpp").open("a") as source:
        source.write("// changed\n")
    assert library.choice().reason == "they are not built: python -m llmscale_kernels.cpu.build"


def test_a_build_that_fails_leaves_nothing_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "norm.cpp").write_text("int main( {")
    monkeypatch.setattr(build, "SOURCES", tmp_path / "sources")
    monkeypatch.setattr(build.sys, "prefix", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"norm\.cpp.* ended with 1:\n(.|\n)*error"):
        build.build()
    build.main()
    assert (
        "not built, so torch computes in their place; CXX names another compiler" in capsys.readouterr().out
    )
    assert not list(build.folder().iterdir())


@pytest.mark.parametrize("name", OPERATIONS)
def test_without_the_library_torch_computes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operation, reference, shapes, _ = OPERATIONS[name]
    torch.manual_seed(0)
    inputs = [torch.randn(shape) for shape in shapes]
    expected = operation(*inputs)
    for module in (norm, rotary, swiglu):
        monkeypatch.setattr(module.cpu, "library_for", lambda _: None)
    torch.testing.assert_close(operation(*inputs), expected, rtol=1e-5, atol=1e-5)
