"""Compiles DeepSpeed's C++ operations ahead: `python -m llmscale.run.build_ops`, a part of `make install`.

Without it the first training run stands still for half a minute while every rank waits for one compiler.
"""

import time
from typing import Any

from deepspeed.accelerator import get_accelerator

from llmscale.engine.operations import mark_whole
from llmscale.parallel.extensions import use_prebuilt_extensions

BUILDERS = {
    "ShareMemCommBuilder": "collectives through shared memory, loaded by every run on CPUs",
    "CPUAdamBuilder": "AdamW on the CPU, for zero.offload.optimizer",
}


def build(name: str) -> str:
    """Compile the operation of builder class `name`, or say why this machine does without it.

    Raises:
        RuntimeError: the compiler failed.
    """
    accelerator: Any = get_accelerator()
    builder = accelerator.create_op_builder(name)
    if builder is None:
        return f"not needed on {accelerator.device_name()}"
    if not builder.is_compatible(verbose=False):
        return "not for this machine; what needs it is refused when asked for"
    began = time.perf_counter()
    builder.load(verbose=False)
    return f"ready ({time.perf_counter() - began:.0f} s)"


def main() -> None:
    folder = use_prebuilt_extensions()
    print(f"DeepSpeed's operations, in {folder or 'the cache that torch keeps for this user'}")
    for name, purpose in BUILDERS.items():
        print(f"  {name.removesuffix('Builder')}: {purpose} ...", flush=True)
        print(f"    {build(name)}", flush=True)
    if folder is not None:
        mark_whole(folder)


if __name__ == "__main__":
    main()
