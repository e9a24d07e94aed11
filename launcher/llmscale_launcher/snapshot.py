"""What a job runs from, frozen at the moment of submission: code, its git state, the secret of its nodes.

Code that is edited while a job waits in the queue must not change the job. So the packages are copied into
the run folder, and the job's PYTHONPATH begins there.
"""

import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from llmscale.config.presets import configs_folder
from llmscale_launcher.job import write_whole
from llmscale_launcher.template import templates_folder

PACKAGES = ("llmscale", "llmscale_launcher", "llmscale_kernels")
CODE_NAME = "code"
TOKEN_NAME = ".token"
GIT_NAME = "git.json"
DIFF_NAME = "git.diff"
TOKEN_BYTES = 32
GIT_SECONDS = 20.0


def freeze_code(folder: Path, twin: Path | None = None) -> None:
    """Copy the packages, `configs/` and `slurm/` to `folder/code`, in place of an older copy.

    They lie there as in an installed wheel, so everything finds its files by the same rules. `twin` is a
    folder that has just been given the same copy: its files are shared, where the file system can.
    """
    fresh = Path(tempfile.mkdtemp(dir=folder, prefix=f".{CODE_NAME}."))
    if twin is not None:
        shutil.copytree(twin / CODE_NAME, fresh, dirs_exist_ok=True, copy_function=_link_or_copy)
    else:
        skip = shutil.ignore_patterns("__pycache__", "*.pyc")
        for package in PACKAGES:
            shutil.copytree(package_folder(package), fresh / package, ignore=skip)
        data = {"llmscale/configs": configs_folder(), "llmscale_launcher/slurm": templates_folder()}
        for place, source in data.items():
            shutil.copytree(source, fresh / place, ignore=skip, dirs_exist_ok=True)
    fresh.chmod(0o755)
    _replace_code(folder, fresh)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def link_frozen(folder: Path, owner: Path) -> None:
    """Code and git state of `folder` lead to those that `owner` holds: the runs of a sweep share them."""
    old = _clear_code(folder)
    if old is not None:
        shutil.rmtree(old)
    for name in (CODE_NAME, GIT_NAME, DIFF_NAME):
        (folder / name).unlink(missing_ok=True)
        if (owner / name).exists():
            (folder / name).symlink_to(os.path.relpath(owner / name, folder))


def _replace_code(folder: Path, fresh: Path) -> None:
    old = _clear_code(folder)
    fresh.rename(folder / CODE_NAME)
    if old is not None:
        shutil.rmtree(old)


def _clear_code(folder: Path) -> Path | None:
    """Make way for other code; returns where an older copy now lies."""
    code = folder / CODE_NAME
    if code.is_symlink():
        code.unlink()
    elif code.exists():
        old = Path(tempfile.mkdtemp(dir=folder, prefix=f".{CODE_NAME}."))
        code.rename(old / CODE_NAME)
        return old
    return None


def package_folder(package: str) -> Path:
    """Where a package of ours lies; it is looked up, not imported."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


@dataclass(frozen=True)
class GitState:
    """Of the checkout that the code comes from. Code that was installed has its version only."""

    version: str
    commit: str | None = None
    branch: str | None = None
    dirty: bool | None = None
    difference: str = ""
    """Uncommitted changes, as `git diff HEAD` shows them."""


def read_git() -> GitState:
    """The state of the code as it lies there now."""
    source = package_folder("llmscale").parent
    if not (source / ".git").exists():
        return GitState(version("llmscale"))
    difference = _git(source, "diff", "--no-ext-diff", "--no-color", "HEAD")
    return GitState(
        version=version("llmscale"),
        commit=(_git(source, "rev-parse", "HEAD") or "").strip() or None,
        branch=(_git(source, "rev-parse", "--abbrev-ref", "HEAD") or "").strip() or None,
        dirty=None if difference is None else bool(difference),
        difference=difference or "",
    )


def freeze_git(folder: Path, state: GitState) -> None:
    """Write `git.json` and, of uncommitted changes, `git.diff`."""
    described = asdict(state)
    difference = described.pop("difference")
    write_whole(folder / GIT_NAME, json.dumps(described, indent=1) + "\n")
    if difference:
        write_whole(folder / DIFF_NAME, difference)
    else:
        (folder / DIFF_NAME).unlink(missing_ok=True)


def freeze_token(folder: Path) -> None:
    """Make the secret that the nodes of a run know one another by, if there is none yet."""
    path = folder / TOKEN_NAME
    if not path.exists():
        write_whole(path, secrets.token_hex(TOKEN_BYTES), 0o600)


def _git(source: Path, *arguments: str) -> str | None:
    """What git says; None where it is not installed or refuses."""
    try:
        done = subprocess.run(
            ["git", "-C", str(source), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout
