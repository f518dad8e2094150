"""The command line as its users meet it: exit codes, one line per error, plain text in a pipe."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

from cluster import errors
from cluster.cli import exits, main, models
from cluster.cli.environment import OTHERS
from cluster.client.blocking import Client
from cluster.gateway.settings import GatewaySettings
from cluster.lifecycle.cluster_settings import ENVIRONMENT, ClusterSettings
from cluster.serving.auth import Caller, TokenBook, TokenEntry, digest_of
from tests.cluster.front_door import Door, at_the_door

ROOT = Path(__file__).parents[2]
QUIRE = [sys.executable, "-m", "cluster.cli"]


def quire(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*QUIRE, *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_version() -> None:
    done = quire("--version")
    assert (done.returncode, done.stdout) == (0, "quire 0.1.0\n")


def test_help_in_a_pipe_has_no_boxes_and_no_colours() -> None:
    done = quire("--help")
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert "Exit codes" in done.stdout


def test_what_each_command_does_is_said_whole_on_a_line() -> None:
    commands = quire("--help", COLUMNS="80").stdout.partition("Commands:\n")[2].partition("\n\n")[0]
    lines = commands.splitlines()
    assert len(lines) > 20 and [line for line in lines if not line.endswith(".") or line.endswith("...")] == []


def test_alone_it_shows_the_help_and_h_is_help_everywhere() -> None:
    assert quire().returncode == 0 and quire().stdout == quire("--help").stdout == quire("-h").stdout
    for words in (["size"], ["up"], ["generate"], ["bench", "scheduler"]):
        assert quire(*words, "-h").returncode == 0 and "--" in quire(*words, "-h").stdout


def test_a_shell_completes_commands_and_options() -> None:
    for given, wanted in (("quire gen", "generate"), ("quire status --al", "--all")):
        words = str(len(given.split()) - 1)
        done = quire(_QUIRE_COMPLETE="complete_bash", COMP_WORDS=given, COMP_CWORD=words)
        assert wanted in done.stdout.split(), done.stdout + done.stderr
    assert "complete" in quire("--show-completion", "bash").stdout


@pytest.mark.parametrize("words", [["nonsense"], ["size", "--nope"], ["bench", "nonsense"], ["size", "extra"]])
def test_a_wrong_command_line_is_one_line(words: list[str]) -> None:
    done = quire(*words)
    assert done.returncode == 2
    assert (done.stdout, done.stderr.count("\n")) == ("", 1), done.stderr


def test_a_wrong_command_line_names_the_help_of_its_own_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        ("scale three", "Invalid value for 'workers': Input should be a valid integer; `quire scale --help`"),
        ("tenants ad", "`quire tenants --help`"),
        ("genrate", "Did you mean 'generate'? `quire --help`"),
    ):
        assert main(words.split()) == exits.WRONG_INPUT
        assert f"{said} lists what there is\n" in capsys.readouterr().err


def test_a_variable_that_is_nearly_ours_is_told_with_the_one_that_is() -> None:
    for name, meant in (("WROKERS", "WORKERS"), ("TOKENFILE", "TOKEN_FILE"), ("kv_block", "KV_BLOCKS")):
        done = quire("size", **{f"QUIRE_{name}": "2"})
        assert done.stderr == f"note: QUIRE_{name} is passed over; is QUIRE_{meant} meant?\n" and done.returncode == 0
    done = quire("size", QUIRE_SERVICE_HOST="10.0.0.1", QUIRE_MODEL="demo", QUIRE_VENV="x")
    assert (done.returncode, done.stderr) == (0, "")


def test_every_variable_that_our_files_read_is_known() -> None:
    files = [file for folder in ("cluster", "worker", "deploy") for file in (ROOT / folder).rglob("*")]
    texts = [file.read_text() for file in files if file.suffix in (".py", ".sh", ".md", ".yaml")]
    named = set(re.findall(r"\bQUIRE_[A-Z_]+\b", "\n".join(texts)))
    own = {f"{ENVIRONMENT}{name}" for name in (*OTHERS, *(one.name.upper() for one in fields(ClusterSettings)))}
    assert len(named) > 10 and named <= own, named - own


def test_a_traceback_only_with_debug() -> None:
    wrong = ["size", "--model", "nowhere"]
    assert "Traceback" not in quire(*wrong).stderr
    assert "Traceback" in quire("--debug", *wrong).stderr
    assert "Traceback" in quire(*wrong, "--debug").stderr
    assert "Traceback" in quire(*wrong, QUIRE_DEBUG="1").stderr


def test_a_benchmark_gets_its_own_options() -> None:
    done = quire("bench", "scheduler", "--help")
    assert done.returncode == 0
    assert "--json" in done.stdout


def test_a_reader_that_leaves_early_is_no_error() -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; '{sys.executable}' -m cluster.cli size --json | head -n 1"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")


def test_ctrl_c_ends_with_130(tmp_path: Path) -> None:
    pipe = tmp_path / "config.json"
    os.mkfifo(pipe)
    process = subprocess.Popen([*QUIRE, "size", "--model", str(pipe)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                # Succeeds once the command waits for what we would write.
                writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
                break
            except OSError:
                assert time.monotonic() < deadline, "the command never opened its input"
                time.sleep(0.02)
        # Python drops an interrupt that comes while it is still opening the file.
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=30)
        os.close(writer)
    finally:
        process.kill()
    assert (process.returncode, shown) == (130, "error: interrupted\n")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), exits.WRONG_INPUT),
        (errors.ModelError("x"), exits.WRONG_INPUT),
        (errors.NeverFits("tokens", 9, 5, "tokens", "less"), exits.WRONG_INPUT),
        (errors.Unavailable("x"), exits.NOBODY),
        (errors.QueueFull("x", 1.0), exits.NOBODY),
        (errors.AccessDenied("x"), exits.DENIED),
        (errors.Aborted("x"), exits.FAILED),
    ],
)
def test_every_kind_of_error_has_its_code(error: errors.QuireError, code: int) -> None:
    assert exits.code_of(error) == code


def test_main_returns_instead_of_leaving(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "quire 0.1.0\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--workers", "0"], "workers is 0"),
        (["--block-size", "0"], "block_size is 0; give 1 to 256"),
        (["--kv-blocks", "0"], "kv_blocks is 0"),
        (["--kv-blocks", "5", "--kv-memory", "1GiB"], "both given"),
        (["--kv-memory", "5zB"], "no amount of memory"),
        (["--dtype", "int3"], "dtype is 'int3'"),
        (["--host-memory", "lots"], "no amount of memory"),
        (["--model", "/nowhere"], "there is no model folder /nowhere"),
        (["--model", "FOLDER"], "has no config.json"),
        (["--config", "/nowhere.toml"], "cannot be read"),
        (["--config", "FILE"], "workers is 'two'; give a whole number"),
        (["--tls-certificate", "/nowhere"], "go together"),
        (["--log-dir", "/dev/null/x"], "the log folder /dev/null/x cannot be written"),
        (["--journal", "/nowhere/x"], "the journal /nowhere/x cannot be written"),
        (["--journal", "/dev"], "the journal /dev cannot be written"),
        (["--port", "7001", "--admin-port", "7001"], "port 7001 is asked for by gateway-0 and by the operators' door"),
        (["--port", "7001", "--gateways", "3", "--metrics-port", "7003"], "by gateway-2 and by metrics"),
        (["--port", "65535", "--gateways", "2"], "port 65536 of gateway-1 is above 65535"),
    ],
)
def test_a_start_that_cannot_work_is_one_line_before_anything_runs(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUIRE_HOME", str(tmp_path / "home"))
    for name in ("PORT", "ADMIN_PORT", "METRICS_PORT"):
        monkeypatch.setenv(f"QUIRE_{name}", "0")
    (tmp_path / "settings.toml").write_text('workers = "two"\n')
    places = {"FOLDER": str(tmp_path), "FILE": str(tmp_path / "settings.toml")}
    assert main(["up", *(places.get(word, word) for word in words)]) == exits.WRONG_INPUT
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and says in told
    assert not (tmp_path / "home" / "cluster.json").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["certificates", "/dev/null/x"], "the folder /dev/null/x cannot be written"),
        (["doctor", "--out", "/nowhere/x"], "the bundle /nowhere/x cannot be written"),
        (["up", "--port", "0"], "the state folder /dev/null cannot be written"),
    ],
)
def test_what_cannot_be_written_is_found_first(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUIRE_HOME", "/dev/null")
    assert main(words) == exits.WRONG_INPUT
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1) and says in shown.err, shown.err


def test_a_note_that_others_could_have_written_is_not_believed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUIRE_HOME", str(tmp_path))
    (tmp_path / "cluster.json").write_text("{}")
    (tmp_path / "cluster.json").chmod(0o666)
    assert main(["status"]) == exits.WRONG_INPUT
    assert "can be written by others (mode 666)" in capsys.readouterr().err


def test_a_gateway_that_does_not_answer_lists_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """`quire load` waits for it; only who has no right to ask does not wait."""
    monkeypatch.setattr(models, "ASKED_S", 0.5)
    book = TokenBook([TokenEntry(digest_of("t" * 20), Caller("a", frozenset(["inference"])))])

    async def story(door: Door) -> None:
        with Client(door.address, token="t" * 20) as client, Client(door.address, token="x" * 20) as stranger:
            ask = asyncio.to_thread
            assert await ask(models._may_ask, client) and not await ask(models._may_ask, stranger)
            assert not await ask(models._is_missing, client, "m") and await ask(models._is_missing, client, "n")
            assert not await ask(models._is_missing, stranger, "m")
            await door.server.stop(0.1)
            assert await ask(models._is_missing, client, "m")
            assert not await ask(models._may_ask, client)

    at_the_door(story, settings=GatewaySettings(port=0, tokens=book))


def test_a_machine_that_opens_too_few_files_is_named_before_anything_starts(tmp_path: Path) -> None:
    few = "import resource, os, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)); os.execv(sys.executable, "
    done = subprocess.run(
        [sys.executable, "-c", f"{few}{[*QUIRE, 'up', '--port', '0']!r})"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "QUIRE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode == 0:
        quire("down", QUIRE_HOME=str(tmp_path))
    assert done.returncode == exits.WRONG_INPUT, done.stderr
    assert "may open 100 files here, and 256 are needed" in done.stderr and len(done.stderr.splitlines()) == 1
