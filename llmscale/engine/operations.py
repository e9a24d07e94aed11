"""DeepSpeed's C++ operations, as `make install` compiled them: loaded without asking whether to build.

DeepSpeed asks its compiler's build system at every start of every rank, under a lock file. A thousand ranks
that share one environment would queue for it, and one in another container, which cannot see who holds the
lock, may take it for a dead one's.
"""

import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType

from deepspeed.ops.op_builder.builder import OpBuilder

from llmscale.parallel.extensions import use_prebuilt_extensions


def use_prebuilt_operations() -> list[str]:
    """Load what is there whole; returns the names. The rest DeepSpeed builds when it needs it.

    What this process, or the one it was forked from, has loaded before stays as it is: a second copy of an
    operation ends the process.
    """
    folder = use_prebuilt_extensions()
    libraries = sorted(folder.glob("*/*.so")) if folder else []
    missing = [library for library in libraries if library.stem not in OpBuilder._loaded_ops]
    whole = [library for library in missing if _hash_file(library).exists() and _is_whole(library)]
    for library in whole:
        OpBuilder._loaded_ops[library.stem] = _load(library)
    return [library.stem for library in whole]


def mark_whole(folder: Path) -> None:
    """Note the hashes of the operations in `folder`, once their builds are over.

    A library that a killed build has left half-written does not fail to load: it ends the process.
    """
    for library in folder.glob("*/*.so"):
        temporary = library.with_suffix(".sha256.new")
        temporary.write_text(_hash(library))
        temporary.replace(_hash_file(library))


def _load(library: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(library.stem, library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _is_whole(library: Path) -> bool:
    return _hash_file(library).read_text() == _hash(library)


def _hash_file(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _hash(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()
