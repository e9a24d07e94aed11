"""Operations that were compiled ahead are loaded without a lock, a compiler or a look at either."""

from pathlib import Path
from types import ModuleType

import pytest
import torch.utils.cpp_extension
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.op_builder.builder import OpBuilder

from llmscale.engine import operations
from llmscale.engine.operations import mark_whole, use_prebuilt_operations
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
@pytest.mark.parametrize("half_written", [True, False], ids=["cut short", "never finished"])
def test_a_library_that_may_not_be_whole_is_left_to_be_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half_written: bool
) -> None:
    """Loading half a library would end the process."""
    whole = (extensions.environment_folder() / SHARED_MEMORY / f"{SHARED_MEMORY}.so").read_bytes()
    library = tmp_path / SHARED_MEMORY / f"{SHARED_MEMORY}.so"
    library.parent.mkdir()
    library.write_bytes(whole)
    monkeypatch.setenv(extensions.VARIABLE, str(tmp_path))
    # A second copy of what this process may have loaded would end it.
    monkeypatch.setattr(operations, "_load", lambda library: ModuleType(library.stem))
    if half_written:
        mark_whole(tmp_path)
        library.write_bytes(whole[:5000])
    assert use_prebuilt_operations() == []
    library.write_bytes(whole)
    mark_whole(tmp_path)
    assert use_prebuilt_operations() == [SHARED_MEMORY]
    assert use_prebuilt_operations() == []
