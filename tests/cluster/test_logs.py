"""Logs: one line for each failure, from the process that failed or from its next life; reading them; the bundle."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from cluster.cli import main
from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.running import Running
from cluster.serving.auth_certificates import make_certificates
from cluster.watching.doctor import examine, write_bundle
from cluster.watching.logs import MAX_TOLD, Seldom, read_lines, shown

LIFE = """
import logging, os, sys
from pathlib import Path
from cluster.watching.logs import begin_logs, end_logs
folder, run, end = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
begin_logs("demo-0", folder, "info", run)
log = logging.getLogger("worker.step")
log.debug("too fine")
log.info("ended: %s", "length", extra={"request_id": "local/abc", "figures": {"output_tokens": 7}})
if end == "error":
    try:
        raise ValueError("bad block")
    except ValueError as error:
        log.critical("the step loop ended: %s", error, exc_info=error)
elif end == "order":
    end_logs("demo-0", folder, run)
os.kill(os.getpid(), 9)
"""


def live(folder: Path, run: str, end: str) -> None:
    done = subprocess.run([sys.executable, "-c", LIFE, str(folder), run, end], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_failure_has_one_line_whoever_ended_the_process(tmp_path: Path) -> None:
    ends = (("run-0", "error"), ("run-1", "killed"), ("run-1", "error"), ("run-1", "order"), ("run-1", "killed"))
    for run, end in ends:
        live(tmp_path, run, end)
    causes = read_lines(tmp_path, level="error")
    # The kill is told by the next life, the error by the life itself; an order is no failure; run-0 is of the past.
    assert [line["message"].split(":")[0] for line in causes] == [
        "the life before this one ended without a word",
        "the step loop ended",
    ]
    live(tmp_path, "run-2", "order")
    assert read_lines(tmp_path, level="error") == []
    assert "bad block" in causes[1]["message"] and "ValueError: bad block" in causes[1]["traceback"]


def test_a_process_that_ends_by_order_may_write_on_until_then(tmp_path: Path) -> None:
    script = "from cluster.watching.logs import begin_logs, end_logs\nimport logging, os\nfrom pathlib import Path\n"
    script += f"folder = Path({str(tmp_path)!r})\nbegin_logs('gateway-0', folder, 'info', 'r')\n"
    ends = "end_logs('gateway-0', folder, 'r')\nlogging.getLogger('cluster').info('one more')\nos._exit(9)"
    for rest in (ends, "os._exit(9)", "os._exit(0)"):
        subprocess.run([sys.executable, "-c", script + rest], check=False, timeout=60)
    lines = read_lines(tmp_path, level="error")
    assert len(lines) == 1 and "without a word" in lines[0]["message"]


def test_lines_are_found_by_request_and_shown_with_their_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    live(tmp_path, "run", "order")
    (tmp_path / "demo-1.jsonl").write_text('{"half')
    (line,) = read_lines(tmp_path, request="abc")
    assert line["request_id"] == "local/abc" and line["process"] == "demo-0" and line["pid"] > 0
    assert shown(line).endswith("demo-0       [local/abc] ended: length  output_tokens 7")
    assert main(["logs", "abc", "--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out == shown(line) + "\n"
    assert main(["logs", "nobody", "--folder", str(tmp_path)]) == 2
    assert "no line in" in capsys.readouterr().err
    assert main(["logs", "--level", "loud", "--folder", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: level is 'loud'; give one of debug, info, warning, error\n"


def test_a_certificate_that_is_about_to_end_is_renewed_while_doors_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUIRE_HOME", str(tmp_path))
    files = make_certificates(tmp_path / "door", ["localhost"], 1)
    doors = {"tls_certificate": str(files.server_certificate), "tls_key": str(files.server_key)}
    doors["tls_authority"] = str(files.authority)
    settings = ClusterSettings(metrics_port=9, **doors).as_dict()
    Running("127.0.0.1:9", "", "", [], "quire", "127.0.0.1:9", "", settings).save()
    (advice,) = [one.detail for one in examine() if one.what == "certificate" and one.state == "wrong"]
    assert f"`quire certificates renew {tmp_path / 'door'}`" in advice and "down" not in advice
    renewed = main(["certificates", "renew", str(tmp_path / "door")])
    assert not renewed and not [one for one in examine() if one.what == "certificate" and one.state == "wrong"]


def test_the_bundle_has_everything_but_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_HOME", str(tmp_path))
    monkeypatch.setenv("QUIRE_TOKEN", "my-own-token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the-ray-token")
    live(tmp_path / "logs", "run", "error")
    dead = subprocess.Popen(["true"])
    dead.wait()
    settings = ClusterSettings(metrics_port=9).as_dict()
    Running(
        "127.0.0.1:9", "the-ray-token", "/tmp/x", [dead.pid], "quire", "127.0.0.1:9", "127.0.0.1:9", settings
    ).save()
    findings = examine()
    wrong = {finding.what: finding.detail for finding in findings if finding.state == "wrong"}
    assert "1 of 1 processes are gone" in wrong["ray"] and "quire down" in wrong["ray"]
    assert "nothing answers at 127.0.0.1:9" in wrong["scheduler"] and "metrics" in wrong
    assert any("bad block" in finding.detail for finding in findings)
    names = write_bundle(tmp_path / "bundle.tar.gz", findings)
    assert {"findings.json", "environment.json", "cluster.json", "metrics.txt", "logs/demo-0.jsonl"} <= set(names)
    with tarfile.open(tmp_path / "bundle.tar.gz") as bundle:
        texts = {one.name: bundle.extractfile(one).read().decode() for one in bundle}
    assert all("the-ray-token" not in text and "my-own-token" not in text for text in texts.values())
    assert json.loads(texts["quire-bundle/cluster.json"])["ray_pids"] == [dead.pid]
    assert os.environ["QUIRE_TOKEN"] == "my-own-token"


def test_what_libraries_say_again_and_again_is_told_once_a_minute() -> None:
    """Each connection that cannot be taken was a line, hundreds a second."""
    now = 0.0
    seldom = Seldom(lambda: now)

    def told(name: str, message: str) -> bool:
        return seldom.filter(logging.LogRecord(name, logging.ERROR, "", 0, message, (), None))

    line = "socket.accept() out of system resource\nsocket: <asyncio.TransportSocket fd=%d>"
    assert [told("asyncio", line % at) for at in range(500)] == [True] + [False] * 499
    assert told("asyncio", "something else") and told("grpc", line)
    assert all(told("cluster.gateway", "the same") for _ in range(10))
    now = 61.0
    assert told("asyncio", line % 1) and not told("asyncio", line % 2)
    assert all(told("other", f"{at} of them") for at in range(10_000)) and len(seldom._told) <= MAX_TOLD
