"""The base install is the client: what it offers imports and runs where nothing of the serving side is installed.

Every check runs in a process of its own in which the serving packages cannot be imported, as if they were not there.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# numpy belongs to `quire[serve]` as well.
SERVING = ("torch", "ray", "transformers", "numpy", "triton", "numba", "tokenizers", "safetensors", "google_crc32c")

BLOCK = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {SERVING!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked by the test)", name=name)
sys.meta_path.insert(0, Blocked())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCK + code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_block_blocks() -> None:
    done = run("import torch")
    assert done.returncode == 1
    assert "blocked by the test" in done.stderr


def test_cluster_and_the_clients_names_import() -> None:
    done = run(
        "import cluster\n"
        "from cluster import SamplingParams, QuireError, InvalidRequest\n"
        "assert SamplingParams(temperature=0).temperature == 0\n"
        "assert set(cluster.CLIENT) <= set(dir(cluster))\n"
        "for name in cluster.CLIENT: getattr(cluster, name)\n"
        "print(cluster.__version__)\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0.1.0"


def test_importing_cluster_imports_nothing_else() -> None:
    done = run(
        "import cluster\n"
        "print(*sorted(m for m in sys.modules if m.split('.')[0] in ('grpc', 'google', 'rich', 'typer')))"
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_every_command_shows_its_help() -> None:
    done = run(
        "import contextlib, io\n"
        "from cluster.cli import build, main\n"
        "names = list(build().commands)\n"
        "assert 'size' in names and 'bench' in names, names\n"
        "for name in ['', *names]:\n"
        "    assert main([*([name] if name else []), '--help']) == 0, name\n"
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: quire size" in done.stdout


def test_quire_size_runs_in_the_base_install() -> None:
    done = run("from cluster.cli import main\nraise SystemExit(main(['size', '--requests', '10']))")
    assert done.returncode == 0, done.stderr
    assert "blocks of 16 tokens" in done.stdout


def test_a_command_of_the_serving_side_says_what_to_install() -> None:
    done = run("from cluster.cli import main\nraise SystemExit(main(['generate', '--local', 'Hello']))")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "quire[serve]" in done.stderr


def test_a_name_of_the_serving_side_says_what_to_install() -> None:
    done = run("try:\n    from cluster import LLM\nexcept ImportError as error:\n    print(error)")
    assert done.returncode == 0, done.stderr
    assert "cluster.LLM needs the serving side" in done.stdout
    assert "pip install 'quire[serve]'" in done.stdout


def test_a_name_that_is_not_there_lists_what_is() -> None:
    done = run("import cluster\ntry:\n    cluster.Llm\nexcept AttributeError as error:\n    print(error)")
    assert done.returncode == 0, done.stderr
    assert "SamplingParams" in done.stdout
