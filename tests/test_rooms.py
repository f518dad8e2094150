"""Holds the lines between the rooms: who may import whom, and that what decides knows no torch, ray or grpc.

It reads every import statement with `ast`, those inside functions too.
"""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("cluster", "worker", "kernels", "protos")

# From here everything is followed: what these files import, and what those import, must be able to decide alone.
DECIDING = (
    "cluster.centre.scheduler",
    "cluster.desk.desk",
    "cluster.gateway.door.check",
    "cluster.messages",
    "cluster.centre.ledger",
    "cluster.centre.prefix",
    "cluster.settings",
    "cluster.sampling",
    "cluster.errors",
    "cluster.hashing",
    "cluster.limits",
    "cluster.sizes",
    "cluster.sizing",
    "cluster.links.dialer",
    "cluster.links.listener",
    "cluster.links.strangers",
    "cluster.register.asking",
)
# The files of `cluster` that a worker may know: messages and their form on the wire, settings, errors, the desk.
KNOWN_TO_WORKERS = {
    "cluster",
    "cluster.messages",
    "cluster.settings",
    "cluster.errors",
    "cluster.limits",
    "cluster.sampling",
    "cluster.sampling_fields",
    "cluster.sampling_rules",
    "cluster.generation_config",
    "cluster.hashing",
    "cluster.sizes",
    "cluster.structure",
}
# The benchmarks of kernels are commands of the product and live in `cluster`; kernels themselves never see them.
ALLOWED = {
    "kernels": {"kernels"},
    "protos": {"protos"},
    "worker": {"worker", "kernels", "protos", "cluster"},
    "cluster": {"cluster", "worker", "kernels", "protos"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for room in ROOMS
    for path in sorted((ROOT / room).rglob("*.py"))
    if not path.stem.endswith(("_pb2", "_pb2_grpc"))
}


@cache
def imports_of(path: Path, *, for_types_too: bool = False) -> list[str]:
    """The absolute names that a file imports; for `from a import b` a.b if that is a module, else a."""
    found: list[str] = []
    package = module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    for node in waiting:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            full = ".".join(part for part in (base, node.module or "") if part)
            found += [f"{full}.{a.name}" if f"{full}.{a.name}" in MODULES else full for a in node.names]
        # What stands under `if TYPE_CHECKING` never runs. Inside an expression nothing is imported.
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not for_types_too
        inner = node.orelse if is_typing and isinstance(node, ast.If) else ast.iter_child_nodes(node)
        waiting += [one for one in inner if not isinstance(one, ast.expr)]
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    assert any(name.split(".")[0] == room for name in MODULES), f"no files found in {room}/"
    for name, path in MODULES.items():
        if name.split(".")[0] != room:
            continue
        ours = {i.split(".")[0] for i in imports_of(path)} & set(ROOMS)
        assert ours <= ALLOWED[room], f"{name} imports {sorted(ours - ALLOWED[room])}"


def test_workers_know_few_files_of_cluster() -> None:
    for name, path in MODULES.items():
        if name.startswith("worker"):
            # How messages are written, how they travel, and the rules of transfers.
            known = {i for i in imports_of(path) if i.split(".")[0] == "cluster"}
            open_rooms = ("cluster.wire", "cluster.links", "cluster.desk", "cluster.register")
            known = {i for i in known if not i.startswith(open_rooms)}
            assert known <= KNOWN_TO_WORKERS, f"{name} imports {sorted(known - KNOWN_TO_WORKERS)}"


def test_no_test_or_deploy_code_is_imported_by_the_product() -> None:
    for name, path in MODULES.items():
        wrong = [i for i in imports_of(path) if i.split(".")[0] in ("tests", "deploy", "pytest", "hypothesis")]
        assert not wrong, f"{name} imports {wrong}"


def test_what_decides_needs_only_numpy_and_the_standard_library() -> None:
    """The desk's loops over batch rows are compiled as well."""
    waiting, followed = [*DECIDING], set()
    while waiting:
        name = waiting.pop()
        if name in followed:
            continue
        followed.add(name)
        assert name in MODULES, f"{name} is on the list of deciding files and does not exist"
        for imported in imports_of(MODULES[name]):
            top = imported.split(".")[0]
            if top == "cluster":
                waiting.append(imported)
            else:
                allowed = {"numpy", "numba"} if name.startswith("cluster.desk") else {"numpy"}
                assert top in allowed or top in sys.stdlib_module_names, f"{name} decides and imports {imported}"
    assert len(followed) >= len(DECIDING)


def circles(graph: dict[str, list[str]]) -> list[list[str]]:
    """Files that import each other, directly or by way of others."""
    reach: dict[str, set[str]] = {}
    for start, first in graph.items():
        seen: set[str] = set()
        waiting = [*first]
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += graph[name]
        reach[start] = seen
    found = {tuple(sorted(other for other in seen if one in reach[other])) for one, seen in reach.items()}
    return sorted(list(ring) for ring in found if len(ring) > 1)


def test_arrows_go_one_way() -> None:
    """No circle of imports anywhere, those inside functions and those for types alone counted."""
    graph = {
        name: [one for one in imports_of(path, for_types_too=True) if one in MODULES and one != name]
        for name, path in MODULES.items()
    }
    assert len(graph) > 300 and sum(map(len, graph.values())) > 1000
    assert not circles(graph)
    graph["cluster.centre.ledger"].append("cluster.centre.scheduler")
    assert any({"cluster.centre.ledger", "cluster.centre.scheduler"} <= set(ring) for ring in circles(graph))


def test_the_check_sees_a_forbidden_import(tmp_path: Path) -> None:
    """The reader of imports finds them at the top, inside functions, and not under TYPE_CHECKING."""
    path = ROOT / "kernels" / "probe_of_the_test.py"
    text = (
        "import torch\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ray\n"
        "def f():\n    from cluster.centre.ledger import Ledger\n    return Ledger\n"
    )
    assert "cluster.centre.ledger" in MODULES

    class Text:
        """Stands in for a path, so that nothing is written into the tree."""

        name = path.name

        def read_text(self) -> str:
            return text

        def relative_to(self, other: Path) -> Path:
            return path.relative_to(other)

    assert imports_of(Text()) == ["torch", "typing", "cluster.centre.ledger"]  # type: ignore[arg-type]
    assert "ray" in imports_of(Text(), for_types_too=True)  # type: ignore[arg-type]


def test_only_the_seam_names_cuda() -> None:
    """Whoever asks a device anything asks the seam, so that the twin answers too."""
    for name, path in MODULES.items():
        if not name.startswith("kernels.device"):
            wrong = [word for word in ("torch.cuda", 'device.type == "cuda"') if word in path.read_text()]
            assert not wrong, f"{name} names {wrong}"
