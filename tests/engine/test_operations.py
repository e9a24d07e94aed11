"""Operations that were compiled ahead are loaded without a lock, a compiler or a look at either."""

from pathlib import Path

import pytest
import torch.utils.cpp_extension
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.op_builder.builder import OpBuilder

from llmscale.engine.operations import use_prebuilt_operations
from llmscale.parallel import extensions

SHARED_MEMORY = "deepspeed_shm_comm"


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object, **__: object) -> None:
        raise AssertionError("asked for a build")

    monkeypatch.setattr(OpBuilder, "_loaded_ops", {})
    monkeypatch.setattr(torch.utils.cpp_extension, "load", build)


@pytest.mark.usefixtures("nothing_loaded")
def test_what_is_compiled_is_loaded_and_nothing_is_built() -> None:
    assert SHARED_MEMORY in use_prebuilt_operations()
    operation = get_accelerator().create_op_builder("ShareMemCommBuilder").load(verbose=False)
    assert hasattr(operation, "initialize")


@pytest.mark.usefixtures("nothing_loaded")
def test_a_library_that_is_cut_short_is_left_to_be_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = extensions.environment_folder() / SHARED_MEMORY / f"{SHARED_MEMORY}.so"
    cut = tmp_path / SHARED_MEMORY / whole.name
    cut.parent.mkdir()
    cut.write_bytes(whole.read_bytes()[:5000])
    monkeypatch.setenv(extensions.VARIABLE, str(tmp_path))
    assert use_prebuilt_operations() == []
    assert "built again" in capsys.readouterr().err
