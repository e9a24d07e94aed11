"""Whether a program says the same again and again: lines, statements, parts of one expression, words of one
name. Needs the standard library alone: it runs in a subprocess.

A model that has found out what parses writes more of it: `print(1)` six times, `f(a.b, a.b, a.b, a.b)`,
`get_get_get_get`.
"""

import ast
import re
from collections.abc import Iterator, Sequence

REPEATED_FROM = 4
"""Parts, fewer of which repeat nothing."""
DISTINCT_SHARE = 0.5
"""Of the parts, which is too few."""

Parts = Sequence[str]


def repeats(program: str, tree: ast.Module) -> bool:
    return any(
        len(parts) >= REPEATED_FROM and len({*parts}) <= DISTINCT_SHARE * len(parts)
        for parts in _all_parts(program, tree)
    )


def _all_parts(program: str, tree: ast.Module) -> Iterator[Parts]:
    # Lines of brackets alone are alike in any program.
    yield [line.strip() for line in program.splitlines() if re.search(r"\w", line)]
    nodes = list(ast.walk(tree))
    yield [ast.dump(node) for node in nodes if isinstance(node, ast.stmt)]
    # The inner ends of a chain are parts of the whole chain.
    inner = {id(end) for node in nodes if (end := _inner_end(node)) is not None}
    for node in nodes:
        yield [ast.dump(part) for part in _side_by_side(node) if not _is_number(part)]
        if id(node) not in inner:
            yield _chained(node)
        yield _words(node)


def _side_by_side(node: ast.AST) -> Sequence[ast.expr]:
    """Expressions that are parts of one, by their place alone: what has a name may well be said again."""
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return node.elts
    if isinstance(node, ast.Call):
        return node.args
    if isinstance(node, ast.BoolOp):
        return node.values
    if isinstance(node, ast.Compare):
        return [node.left, *node.comparators]
    return []


def _is_number(node: ast.expr) -> bool:
    """Or another constant, which a table may well have many times."""
    return isinstance(node.operand if isinstance(node, ast.UnaryOp) else node, ast.Constant)


def _inner_end(node: ast.AST) -> ast.AST | None:
    """`a + b` of `a + b + c`, `a.b` of `a.b.c`."""
    if isinstance(node, ast.BinOp) and isinstance(node.left, ast.BinOp):
        return node.left
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
        return node.value
    return None


def _chained(node: ast.AST) -> Parts:
    """Operands of a chain of operations, names of a chain of attributes."""
    found: list[str] = []
    link: ast.AST | None = node
    while link is not None:
        inner = _inner_end(link)
        if isinstance(link, ast.Attribute):
            found.append(link.attr)
        elif isinstance(link, ast.BinOp):
            found += [ast.dump(link.right)] + ([ast.dump(link.left)] if inner is None else [])
        link = inner
    return found


def _words(node: ast.AST) -> Parts:
    """Of a name that the program gives or asks for."""
    for key in ("id", "attr", "name", "arg"):
        name = getattr(node, key, None)
        if isinstance(name, str):
            return re.findall(r"[A-Za-z]+|[0-9]+", name)
    return []
