"""deploy/examples/two_nodes.sh: two Ray nodes of this machine, a worker on each, and an answer."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.deploy.lifecycle import ROOT, environment


@pytest.mark.trust
@pytest.mark.timeout(400)
def test_two_nodes() -> None:
    home = Path(tempfile.mkdtemp(prefix="quire-nodes-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    surroundings = environment(home, RAY_PORT=str(port))
    process = subprocess.Popen(
        [str(ROOT / "deploy/examples/two_nodes.sh")],
        env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        told, _ = process.communicate(timeout=380)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)
    assert process.returncode == 0, told
    assert "Once upon a time, a" in told and "nothing is left" in told
