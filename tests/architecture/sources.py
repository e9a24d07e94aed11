"""The project's own Python files as the architecture tests see them: modules, their floors, their imports."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
ROOTS = {
    "llmscale": REPOSITORY,
    "llmscale_launcher": REPOSITORY / "launcher",
    "llmscale_kernels": REPOSITORY / "kernels",
}

FLOORS: dict[str, float] = {
    "llmscale": 0,  # the version
    "llmscale_kernels": 0,
    "llmscale.config": 0,
    "llmscale.plan": 1,
    "llmscale.parallel": 1,
    "llmscale.control": 1,
    "llmscale_launcher": 1.5,
    "llmscale.model": 2,
    "llmscale.data": 2,
    "llmscale.objectives": 2.5,  # on the upper half of floor 2: what a model makes of a batch of data
    "llmscale.engine": 3,
    "llmscale.checkpoint": 3,
    "llmscale.runtime": 3,
    "llmscale.train": 4,
    "llmscale.rlhf": 4,
    "llmscale.report": 4,
    "llmscale.run": 5,
    "llmscale.commands": 5,
    "llmscale.cli": 5,
    "llmscale.__main__": 5,
}
TOP = 5
"""The composition floor: its folders may import one another."""


@dataclass(frozen=True)
class Source:
    """One file: `module` is its dotted name, `path` where it is."""

    module: str
    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(), filename=str(self.path))

    @property
    def folder(self) -> str:
        """The unit that has a floor: `llmscale.model` for everything under `llmscale/model/`."""
        parts = self.module.split(".")
        return ".".join(parts[:2]) if parts[0] == "llmscale" else parts[0]

    @cached_property
    def imports(self) -> list[tuple[int, str]]:
        """Line and dotted name of everything imported anywhere in the file; `from a import b` gives `a.b`."""
        return list(_imports(self.tree))

    @property
    def import_froms(self) -> list[ast.ImportFrom]:
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.ImportFrom)]


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def find_sources() -> list[Source]:
    """Every Python file of the three packages."""
    return [
        Source(_module_name(path.relative_to(root)), path)
        for package, root in ROOTS.items()
        for path in sorted((root / package).rglob("*.py"))
    ]


def _module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def folder_of(name: str) -> str | None:
    """The folder with a floor that the imported `name` lies in; None for other people's packages."""
    package, _, rest = name.partition(".")
    if package not in ROOTS:
        return None
    return f"llmscale.{rest.split('.')[0]}" if package == "llmscale" and rest else package


def own_module(name: str, modules: set[str]) -> str | None:
    """The module of ours that `import name` loads: `name` itself or, for an attribute, its parent."""
    parent = name.rpartition(".")[0]
    return name if name in modules else parent if parent in modules else None


SOURCES = find_sources()
