"""deploy/examples/two_nodes.sh: two Ray nodes of this machine, a worker on each, and an answer."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.deploy.lifecycle import ROOT, environment, is_set_up_for


@pytest.mark.trust
@pytest.mark.skipif(not is_set_up_for(ROOT), reason="this environment was not made by deploy/setup.sh here")
@pytest.mark.timeout(400)
def test_two_nodes() -> None:
    home = Path(tempfile.mkdtemp(prefix="quire-nodes-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    surroundings = environment(home, RAY_PORT=str(port), QUIRE_VENV=sys.prefix)
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
    nodes = re.findall(r"^demo-\d +demo +(\w+) +serves ", told, re.MULTILINE)
    pools = re.findall(r"^host-(\w+)-\w+ +host ", told, re.MULTILINE)
    assert len(nodes) == 2 and set(nodes) == set(pools) and len(pools) == 2, told
