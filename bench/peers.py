"""Who runs what llmscale is compared with: a virtual environment of its own, made by `make peers`.

Transformers and TRL look around for what else is installed, and take it where they can. There they find what
they ask for themselves and what a config of llmscale is read with; nothing that was compiled for llmscale.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ENVIRONMENT = Path(__file__).parents[1] / ".venv-peers"
LIBRARIES = ("torch", "transformers", "trl", "peft")
VERSIONS = """
import json
from importlib.metadata import distributions
print(json.dumps({one.name: one.version for one in distributions()}))
"""


def interpreter() -> str:
    """Python of their environment where that has been made, else the one that runs llmscale."""
    own = ENVIRONMENT / "bin" / "python"
    return str(own) if own.exists() else sys.executable


def described() -> dict[str, Any]:
    """Their interpreter and the versions of `LIBRARIES` that it finds; None: not there."""
    command = [interpreter(), "-c", VERSIONS]
    versions = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"interpreter": command[0], **{library: versions.get(library) for library in LIBRARIES}}
