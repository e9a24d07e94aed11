"""DeepSpeed's C++ operations, as `make install` compiled them: loaded without asking whether to build.

DeepSpeed asks its compiler's build system at every start of every rank, under a lock file. A thousand ranks
that share one environment would queue for it, and one in another container, which cannot see who holds the
lock, may take it for a dead one's.
"""

import importlib.util
import sys
from pathlib import Path

from deepspeed.ops.op_builder.builder import OpBuilder

from llmscale.parallel.extensions import use_prebuilt_extensions


def use_prebuilt_operations() -> list[str]:
    """Load what is there; returns the names. The rest DeepSpeed builds when it needs it."""
    folder = use_prebuilt_extensions()
    libraries = sorted(folder.glob("*/*.so")) if folder else []
    return [
        library.stem for library in libraries if library.stem == library.parent.name and _load(library)
    ]


def _load(library: Path) -> bool:
    """Whether the operation is loaded; one that a killed build left half-written is not."""
    name = library.stem
    spec = importlib.util.spec_from_file_location(name, library)
    if spec is None or spec.loader is None:
        return False
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        print(f"{library} does not load and is built again: {error}", file=sys.stderr)
        return False
    OpBuilder._loaded_ops[name] = module
    return True
