"""`quire chat` as a person has it, on a pseudo-terminal: nothing that goes wrong ends the conversation."""

import asyncio
import json
import os
import pty
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.cli.chat import ChatConversation
from cluster.client.blocking import Client
from cluster.errors import NotFound, Unavailable
from cluster.gateway.settings import GatewaySettings
from cluster.sampling import SamplingParams
from tests.cluster.front_door import SHAPE, Door, at_the_door, slow

ROOT = Path(__file__).parents[2]


class Terminal:
    """A command on a pseudo-terminal, and what it has shown since it was last asked."""

    def __init__(self, home: Path, *words: str) -> None:
        pid, self.master = pty.fork()
        if not pid:
            environment = {**os.environ, "QUIRE_HOME": str(home), "PYTHONPATH": str(ROOT), "TERM": "dumb"}
            os.execve(sys.executable, [sys.executable, "-m", "cluster.cli", *words], environment)
        self.pid = pid
        self._shown = ""

    def until(self, text: str, timeout_s: float = 20.0) -> str:
        until = time.monotonic() + timeout_s
        while text not in self._shown:
            assert time.monotonic() < until, f"{text!r} was not shown: {self._shown!r}"
            os.set_blocking(self.master, False)
            try:
                self._shown += os.read(self.master, 65536).decode(errors="replace")
            except BlockingIOError:
                time.sleep(0.02)
            except OSError as error:
                raise AssertionError(f"it ended before {text!r}: {self._shown!r}") from error
        before, _, self._shown = self._shown.partition(text)
        return before

    def type(self, line: str, end: str = "\n") -> None:
        os.set_blocking(self.master, True)
        os.write(self.master, (line + end).encode())

    def ended(self) -> int:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.master)
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError("it did not end")


def chat(door: Door, home: Path, *words: str) -> Terminal:
    return Terminal(home, "chat", "--address", door.address, *words)


def test_a_conversation_goes_on_whatever_happens(tmp_path: Path) -> None:
    async def story(door: Door) -> None:
        def talk() -> int:
            terminal = chat(door, tmp_path, "--max-tokens", "1500", "--seed", "3")
            terminal.until("> ")
            # A Ctrl-C ends the answer, at the gateway too, and is no end of the conversation.
            terminal.type("/temperature hot")
            terminal.until("/temperature hot: is no number")
            terminal.type("wdaa")
            terminal.until("\r\n w")
            terminal.type("", end="\x03")
            terminal.until("> ")
            terminal.type("/system wdab")
            terminal.until("> ")
            terminal.type('"""wdac')
            terminal.until(". ")
            terminal.type('wdad"""')
            terminal.until("\r\n w")
            terminal.type("", end="\x03")
            terminal.until("> ")
            terminal.type(f"/save {tmp_path / 'said.json'}")
            terminal.until("saved: 5 messages")
            terminal.type(f"/save {tmp_path / 'said.json'}")
            terminal.until("File exists")
            terminal.until("> ")
            terminal.type("", end="\x03")
            terminal.until("Ctrl-D or /quit leaves")
            # What is being typed is taken back, and that is no second one at an empty prompt.
            terminal.until("> ")
            terminal.type("half a question", end="")
            terminal.until("question")
            terminal.type("", end="\x03")
            terminal.until("> ")
            terminal.type("/nonsense")
            terminal.until("/help lists")
            terminal.until("> ")
            terminal.type("", end="\x04")
            return terminal.ended()

        assert await asyncio.to_thread(talk) == 0
        await door.settled(3.0)
        said = json.loads((tmp_path / "said.json").read_text())["messages"]
        assert [one["role"] for one in said] == ["system", "user", "assistant", "user", "assistant"]
        assert said[3]["content"] == "wdac\nwdad" and said[2]["content"]
        assert stat.S_IMODE((tmp_path / "chat_history").stat().st_mode) == 0o600
        assert "wdaa" in (tmp_path / "chat_history").read_text()

    at_the_door(story, shapes=[slow(0.005)], timeout_s=90)


def test_what_fails_can_be_asked_again_and_a_wrong_start_is_one_line(tmp_path: Path) -> None:
    async def story(door: Door) -> None:
        def talk() -> list[int]:
            wrong = chat(door, tmp_path, "--model", "nobody")
            wrong.until("error: no model 'nobody' is served; there is m")
            terminal = chat(door, tmp_path, "--max-tokens", "5", "--seed", "3")
            terminal.until("> ")
            terminal.type("/retry")
            terminal.until("nothing to ask again")
            terminal.type("wdaa " * 3000)
            terminal.until("error: prompt", 30.0)
            terminal.until("> ")
            terminal.type("wdaa")
            first = terminal.until("> ")
            terminal.type("/retry")
            again = terminal.until("> ")
            assert first.split("\r\n")[1] == again.split("\r\n")[1]
            terminal.type("/quit")
            return [wrong.ended(), terminal.ended()]

        assert await asyncio.to_thread(talk) == [2, 0]

    at_the_door(story, timeout_s=90)


def test_a_second_model_breaks_no_conversation_with_the_default() -> None:
    async def story(door: Door) -> None:
        catalogue = door.gateway.catalogue
        catalogue.models["n"] = catalogue.models["m"]
        await door.until(lambda: set(catalogue.served) == {"m", "n"})

        def talk(model: str) -> str:
            with Client(door.address) as client:
                return "".join(ChatConversation(client, model, SamplingParams(max_tokens=3, seed=1)).ask("wdaa"))

        assert await asyncio.to_thread(talk, "")
        catalogue.default = ""
        with pytest.raises(NotFound, match="--model is to be one of m, n"):
            await asyncio.to_thread(talk, "")
        assert await asyncio.to_thread(talk, "n")
        catalogue.served.clear()
        with pytest.raises(Unavailable, match="no model is served now"):
            await asyncio.to_thread(talk, "")

    settings = GatewaySettings(port=0, default_model="m")
    at_the_door(story, settings=settings, shapes=[SHAPE, replace(SHAPE, model="n")], timeout_s=60)


def through_a_pipe(door: Door, lines: str) -> Callable[[], "subprocess.CompletedProcess[str]"]:
    words = [sys.executable, "-m", "cluster.cli", "chat", "--address", door.address, "--max-tokens", "5", "--seed", "3"]
    return lambda: subprocess.run(words, cwd=ROOT, input=lines, capture_output=True, text=True, timeout=60, check=False)


def test_a_pipe_asks_line_by_line() -> None:
    async def story(door: Door) -> None:
        done = await asyncio.to_thread(through_a_pipe(door, "wdaa\n\nwdab\n"))
        assert done.returncode == 0 and done.stdout.count("\n") == 2, done.stderr

    at_the_door(story, timeout_s=60)


def test_the_oldest_turns_leave_a_context_that_is_full(capsys) -> None:
    """Each turn takes about 300 of 2,048 tokens; the system's words stay, and the note comes once."""

    async def story(door: Door) -> None:
        def talk() -> ChatConversation:
            with Client(door.address) as client:
                params = SamplingParams(max_tokens=100, ignore_eos=True, seed=1)
                talk = ChatConversation(client, "", params, system="wdaf")
                for number in range(15):
                    assert "".join(talk.ask("wdaa " * 100 + f"wdb{'abcdefghij'[number % 10]}"))
                return talk

        talk = await asyncio.to_thread(talk)
        assert len(talk.messages) == 30 and 0 < talk.num_left < 30 and talk.num_left % 2 == 0

    at_the_door(story, timeout_s=60)
    assert capsys.readouterr().err.count("the oldest turns are not sent any more") == 1
