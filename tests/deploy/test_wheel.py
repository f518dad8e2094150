"""What the distribution carries and asks for, from a real wheel; and that our `kernels` is not taken for another one.

Hugging Face has a distribution named `kernels`, which transformers looks for by import name.
"""

import os
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ASKS = (
    "from transformers.utils import is_kernels_available; import kernels, transformers; "
    "print(is_kernels_available(), kernels.__file__)"
)
LOADS = (
    "import sys, torch\nfrom transformers import AutoModelForCausalLM\n"
    "from transformers.utils import is_kernels_available\n"
    "assert not is_kernels_available()\n"
    "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)\n"
    "print(tuple(model(torch.tensor([[0, 5]])).logits.shape))"
)


def run(code: str, *words: str, cwd: Path, path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the wheel is built from, because a build leaves folders behind."""
    folder = tmp_path_factory.mktemp("source")
    names = ("pyproject.toml", "README.md", "LICENSE", "cluster", "worker", "kernels", "protos")
    subprocess.run(["cp", "-r", *(str(ROOT / name) for name in names), str(folder)], check=True, timeout=30)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(out)]
    subprocess.run([*command, str(source)], check=True, timeout=100)
    (found,) = out.glob("quire-0.1.0-*.whl")
    return found


def test_the_wheel_holds_every_module_and_the_demo_model(wheel: Path, source: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    ours = [p for room in ("cluster", "worker", "kernels", "protos") for p in (source / room).rglob("*") if p.is_file()]
    # The pages that map the rooms and the rules of the wire package are for the checkout; a README of data goes along.
    pages = {p for p in ours if p.suffix == ".md" and p.parent.name != "demo"} | {source / "protos" / "buf.yaml"}
    wanted = {str(p.relative_to(source)) for p in ours if "__pycache__" not in p.parts and p not in pages}
    assert not {n for n in wanted if n not in names}
    assert not {n for n in names if n.startswith(("tests", "deploy"))}


def test_the_base_install_is_the_client_and_no_more(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = message_from_string(archive.read("quire-0.1.0.dist-info/METADATA").decode())
    requires = metadata.get_all("Requires-Dist") or []
    base = {r.split(">")[0].split("<")[0].strip() for r in requires if "extra ==" not in r}
    assert base == {"grpcio", "protobuf", "typer", "rich"}
    assert (metadata["Requires-Python"], metadata["License-Expression"]) == ("<3.13,>=3.11", "Apache-2.0")


def test_every_direct_dependency_has_a_tested_version_and_a_reason() -> None:
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    text = (ROOT / "pyproject.toml").read_text()
    for section in ("dependencies = [", "serve = ["):
        lines = text[text.index(f"\n{section}") :].split("\n]")[0].splitlines()[2:]
        assert len(lines) >= 4
        for line in lines:
            requirement, _, reason = line.strip().partition("  # ")
            name = requirement.strip().strip('",').split(">")[0].split("[")[0]
            assert len(reason) > 10, f"{name} has no reason beside it"
            assert name in pinned, f"{name} has no tested version in constraints.txt"


@pytest.mark.parametrize("state", ["installed", "checkout"])
def test_transformers_does_not_take_our_kernels_for_another(state: str, wheel: Path, tmp_path: Path) -> None:
    if state == "installed":
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
        subprocess.run([*command, str(tmp_path), str(wheel)], check=True, timeout=100)
        place, cwd = tmp_path, tmp_path / "worker"
    else:
        place, cwd = ROOT, ROOT
    assert run(ASKS, cwd=cwd, path=place) == f"False {place / 'kernels' / '__init__.py'}"
    assert run(LOADS, str(place / "worker" / "demo"), cwd=cwd, path=place) == "(1, 2, 1536)"
