"""Small wrong changes of the machines' source: where they can be made, and a module that is imported with one of them.

A mutation changes one operator, constant, branch or statement of a function that decides. Left alone are checks and
assertions (they are the judge), texts, notes and counters (they are told to people), and constants with a name in
capitals (costs and bounds that somebody chose). `cluster/sim/mutants.py` runs histories against them.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
_LEFT_ALONE = ("check", "__repr__", "__str__", "why", "describe", "say", "figures", "snapshot", "warm_up")
"""Functions whose names begin so judge, speak to people, or only do ahead of time what would be done anyway."""
_FOR_PEOPLE = ("counters", "notes", "log", "metrics", "counts")
"""A statement that calls or changes one of these is no rule."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """One change. `name` says where and what, and stays the same as long as its function does."""

    module: str
    name: str
    place: int  # which of the module's changes it is, in the order of its source


def mutations_of(module: str) -> list[Mutation]:
    """All changes that can be made to a module."""
    found: list[Mutation] = []
    seen: dict[str, int] = {}
    for place, (function, change) in enumerate(_changes(ast.parse(_source(module)))):
        name = f"{module.removeprefix('cluster.')} {function}: {change.text}"
        seen[name] = seen.get(name, 0) + 1
        found.append(Mutation(module, name if seen[name] == 1 else f"{name} #{seen[name]}", place))
    return found


def source_digest(module: str) -> str:
    return hashlib.sha256(_source(module).encode()).hexdigest()[:12]


def import_mutated(mutation: Mutation) -> None:
    """From now on this process imports the module with the change; it must not have been imported before."""
    assert mutation.module not in sys.modules, f"{mutation.module} was imported before it could be changed"
    sys.meta_path.insert(0, _Finder(mutation))


# -- where


@dataclass(slots=True)
class _Change:
    """`apply` makes it in the tree that it was found in."""

    text: str
    node: ast.AST
    field: str
    index: int | None
    value: object

    def apply(self) -> None:
        if self.index is None:
            setattr(self.node, self.field, self.value)
        else:
            getattr(self.node, self.field)[self.index] = self.value


def _changes(tree: ast.Module) -> Iterator[tuple[str, _Change]]:
    """Every function's changes, with the function's name, always in the same order."""
    stack: list[tuple[str, ast.AST]] = [("", tree)]
    while stack:
        prefix, node = stack.pop(0)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                stack.append((f"{prefix}{child.name}.", child))
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                bare = child.name.lstrip("_")
                if not child.name.startswith("__rep") and not bare.startswith(_LEFT_ALONE):
                    for change in _body(child):
                        yield prefix + child.name, change


def _body(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[_Change]:
    for index, statement in enumerate(function.body):
        if index == 0 and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue
        yield from _of_statement(function, "body", index)


def _of_statement(parent: ast.AST, field: str, index: int) -> Iterator[_Change]:
    statement = getattr(parent, field)[index]
    if isinstance(statement, ast.Assert | ast.Raise | ast.Import | ast.ImportFrom) or _is_for_people(statement):
        return
    text = ast.unparse(statement).split("\n")[0][:90]
    if _can_go(statement):
        yield _Change(f"without `{text}`", parent, field, index, ast.Pass())
    if isinstance(statement, ast.If | ast.While):
        turned = ast.UnaryOp(ast.Not(), copy.deepcopy(statement.test))
        yield _Change(f"`{text}` turned round", statement, "test", None, turned)
    for name, value in ast.iter_fields(statement):
        if name in ("annotation", "type_comment", "decorator_list", "returns", "args"):
            continue
        if isinstance(value, list):
            for at, item in enumerate(value):
                if isinstance(item, ast.stmt):
                    yield from _of_statement(statement, name, at)
                elif isinstance(item, ast.expr):
                    yield from _of_expression(statement, name, at)
                elif isinstance(item, ast.ExceptHandler | ast.match_case):
                    for inner in range(len(item.body)):
                        yield from _of_statement(item, "body", inner)
        elif isinstance(value, ast.expr):
            yield from _of_expression(statement, name, None)


def _can_go(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call)
    if isinstance(statement, ast.Assign):
        return all(isinstance(target, ast.Attribute | ast.Subscript) for target in statement.targets)
    return isinstance(statement, ast.AugAssign | ast.Continue | ast.Break | ast.Delete)


def _is_for_people(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Expr | ast.Assign | ast.AugAssign):
        return False
    if isinstance(statement, ast.Expr):
        target: ast.AST = statement.value.func if isinstance(statement.value, ast.Call) else statement.value
    else:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
    names = {node.attr for node in ast.walk(target) if isinstance(node, ast.Attribute)}
    names |= {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}
    return bool(names & set(_FOR_PEOPLE)) or any(name.startswith(("num_stale", "num_refused")) for name in names)


def _of_expression(parent: ast.AST, field: str, index: int | None) -> Iterator[_Change]:
    holder = getattr(parent, field)
    node = holder if index is None else holder[index]
    if isinstance(node, ast.JoinedStr | ast.Lambda) or node is None:
        return
    swapped = _swapped(node)
    if swapped is not None:
        before, after = ast.unparse(node)[:90], ast.unparse(ast.fix_missing_locations(swapped))[:90]
        yield _Change(f"`{before}` -> `{after}`", parent, field, index, swapped)
    for name, value in ast.iter_fields(node):
        if isinstance(value, ast.expr):
            yield from _of_expression(node, name, None)
        elif isinstance(value, list):
            for at, item in enumerate(value):
                if isinstance(item, ast.expr):
                    yield from _of_expression(node, name, at)
                elif isinstance(item, ast.keyword) and item.arg != "strict":  # which asserts
                    yield from _of_expression(item, "value", None)
                elif isinstance(item, ast.comprehension):
                    yield from _of_expression(item, "iter", None)
                    for condition in range(len(item.ifs)):
                        yield from _of_expression(item, "ifs", condition)


def _swapped(node: ast.expr) -> ast.expr | None:
    """The same expression with one thing wrong; None: nothing here can be."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return ast.Compare(node.left, [_COMPARISONS[type(node.ops[0])]()], node.comparators)
    if isinstance(node, ast.BoolOp):
        return ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        return ast.BinOp(node.left, _ARITHMETIC[type(node.op)](), node.right)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return node.operand
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            return ast.Constant(not node.value)
        if isinstance(node.value, int):
            return ast.Constant(node.value + 1)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("min", "max"):
        other = "max" if node.func.id == "min" else "min"
        return ast.Call(ast.Name(other, ast.Load()), node.args, node.keywords)
    return None


# -- importing


def _source(module: str) -> str:
    return _path(module).read_text()


def _path(module: str) -> Path:
    root = Path(__file__).resolve().parents[2]
    bare = root.joinpath(*module.split("."))
    return bare.with_suffix(".py") if bare.with_suffix(".py").exists() else bare / "__init__.py"


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module, for a loader that changes it."""

    def __init__(self, mutation: Mutation) -> None:
        self._mutation = mutation

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._mutation.module:
            return None
        loader = _Loader(fullname, str(_path(fullname)))
        loader.place = self._mutation.place
        return importlib.util.spec_from_file_location(fullname, loader.path, loader=loader)


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module with the change of that place."""

    place = -1

    def get_code(self, fullname: str) -> types.CodeType:
        # Never from the cache of compiled files, which holds the module as it is.
        tree = ast.parse(_source(fullname))
        for place, (_, change) in enumerate(_changes(tree)):
            if place == self.place:
                change.apply()
                break
        return compile(ast.fix_missing_locations(tree), self.path, "exec")
