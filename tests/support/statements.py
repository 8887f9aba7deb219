"""The statements of a module's syntax tree: what imports is among them."""

import ast
from collections.abc import Iterator
from typing import Final

_PARTS: Final = ("body", "orelse", "finalbody", "handlers", "cases")


def statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """Yield every statement in a tree, however deep, without a look at expressions, which most of it is."""
    for part in _PARTS:
        for node in getattr(tree, part, ()):
            if isinstance(node, ast.stmt):
                yield node
            yield from statements(node)
