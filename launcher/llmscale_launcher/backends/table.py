"""`cluster.kind` -> where its backend is. Loaded when asked for: nobody needs Ray to submit to SLURM."""

import importlib
from typing import cast

from llmscale_launcher.backends.base import Backend

BACKENDS = {
    "local": "llmscale_launcher.backends.local:LocalBackend",
    "slurm": "llmscale_launcher.backends.slurm:SlurmBackend",
    "ray": "llmscale_launcher.backends.ray:RayBackend",
}


def backend(kind: str) -> Backend:
    """The backend of `cluster.kind`."""
    module, _, name = BACKENDS[kind].partition(":")
    return cast(Backend, getattr(importlib.import_module(module), name)())
