"""Searches the tree for what must not be in it: unpickling and evaluating, registry hosts, paths of one machine."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (".py", ".pyi", ".md", ".toml", ".sh", ".txt", ".cfg", ".ini", ".yaml", ".yml", ".json", ".jinja", ".proto", "")

# Modules whose way of reading runs what it reads.
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "yaml.load", "np.load", "numpy.load", "__import__", "os.system"}
UNSAFE_ARGUMENTS = {"trust_remote_code": True, "allow_pickle": True, "weights_only": False, "shell": True}

# Written in pieces, so that this file does not find itself.
HOSTS = ("py" + "pi.org", "python" + "hosted.org", "download.py" + "torch.org", "ana" + "conda.org", "npm" + "js.org")
MACHINE_PATHS = re.compile(
    r"(?<![\w.$}/-])/(?:" + "|".join(("wo" + "rk", "ro" + "ot", "ho" + "me", "Us" + "ers")) + r")/\w"
)


def tree() -> list[Path]:
    """Files of the checkout that git knows or would add; everything but hidden folders where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0 and listed.stdout:
        return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
    return [p for p in ROOT.rglob("*") if p.is_file() and not any(q.startswith(".") for q in p.relative_to(ROOT).parts)]


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return "?"


def unsafe(source: str) -> list[str]:
    """What in this source would run or unpickle something, as `line: what`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        found += [f"{node.lineno}: import {m}" for m in modules if m.split(".")[0] in UNSAFE_MODULES]
        if isinstance(node, ast.Call):
            if name_of(node.func) in UNSAFE_CALLS:
                found.append(f"{node.lineno}: {name_of(node.func)}()")
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if keyword.arg in UNSAFE_ARGUMENTS and value is UNSAFE_ARGUMENTS[keyword.arg]:
                    found.append(f"{node.lineno}: {keyword.arg}={value}")
    return found


def test_nothing_unpickles_or_evaluates() -> None:
    files = [p for p in tree() if p.suffix == ".py" and p.relative_to(ROOT).parts[0] != "tests"]
    assert len(files) > 10
    wrong = {str(p.relative_to(ROOT)): found for p in files if (found := unsafe(p.read_text()))}
    assert not wrong


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "x = eval('1')",
        "import torch\ntorch.load('f')",
        "f(trust_remote_code=True)",
    ],
)
def test_the_search_finds_what_it_is_for(source: str) -> None:
    assert unsafe(source)


def test_no_registry_and_no_path_of_a_machine() -> None:
    wrong = []
    for path in tree():
        if path.suffix not in TEXT or path.name in ("LICENSE", "tokenizer.json"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if any(host in line for host in HOSTS) or MACHINE_PATHS.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not wrong, "\n".join(wrong)


def test_no_file_is_large() -> None:
    """Checkpoints beyond the demo model and recordings do not belong into the repository."""
    large = {str(p.relative_to(ROOT)): p.stat().st_size for p in tree() if p.stat().st_size > 1 << 20}
    assert set(large) <= {"worker/demo/model.safetensors"}, large
