"""Compiles the C++ kernels: `python -m llmscale_kernels.cpu.build`, a part of `make install`.

They need a C++ compiler with OpenMP and nothing of torch, so that a library outlives torch's versions and is
made in seconds. There is one for each level of x86-64 processors; a process loads the highest that its own
processor has, so that machines of different ages can share one environment.
"""

import hashlib
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent
_V4 = "avx512bw avx512cd avx512dq avx512f avx512vl"
LEVELS = {
    "x86-64-v4-bf16": f"{_V4} avx512_bf16",
    "x86-64-v4": _V4,
    "x86-64-v3": "avx2 bmi2 f16c fma",
}
"""Highest first, and what /proc/cpuinfo says of a processor that has them."""
MACHINES = {"x86-64-v4-bf16": ["-march=x86-64-v4", "-mavx512bf16"]}
"""What a compiler calls those that it does not call as we do."""
OPTIONS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared"]


def folder() -> Path:
    """Where the libraries of these very sources and options are; it need not be there."""
    content = [*(path.read_bytes() for path in _sources()), " ".join(OPTIONS).encode()]
    digest = hashlib.sha256(b"\0".join(content)).hexdigest()[:16]
    return Path(sys.prefix) / "llmscale_kernels" / f"{platform.machine()}-{digest}"


def build() -> list[Path]:
    """Make what is missing; returns the libraries.

    Raises:
        RuntimeError: the compiler failed; carries what it said.
    """
    if platform.machine() != "x86_64":
        return []
    folder().mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_library, LEVELS))


def _library(level: str) -> Path:
    library = folder() / f"{level}.so"
    if library.exists():
        return library
    # Under another name first: a library is whole or not there.
    descriptor, unfinished = tempfile.mkstemp(dir=library.parent)
    os.close(descriptor)
    try:
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        sources = [str(path) for path in _sources() if path.suffix == ".cpp"]
        command = [*compiler, *OPTIONS, *MACHINES.get(level, [f"-march={level}"]), *sources, "-o", unfinished]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        Path(unfinished).replace(library)
    finally:
        Path(unfinished).unlink(missing_ok=True)
    return library


def _sources() -> list[Path]:
    return sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")])


def main() -> None:
    """A compiler that cannot is no reason not to install: torch computes then, which `doctor` says, too."""
    try:
        names = ", ".join(path.stem for path in build()) or "there are none for this processor"
    except RuntimeError as error:
        names = f"not built, so torch computes in their place; CXX names another compiler\n{error}"
    print(f"llmscale's own kernels for CPUs: {names}")


if __name__ == "__main__":
    main()
