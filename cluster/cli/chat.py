"""`quire chat`: a conversation at a terminal or through a pipe.

A `ChatConversation` owns the messages; nothing ends it but its user. An answer that is interrupted stays as far as it
came, a question that failed can be asked again, and where the model's context fills the oldest turns leave, which is
said once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli import interrupts
from cluster.cli.connecting import GatewayOption, TokenOption, open_client
from cluster.cli.line_editor import LineEditor
from cluster.cli.models import NONE_SERVED
from cluster.client.blocking import Client
from cluster.client.request import Options
from cluster.errors import InvalidRequest, NeverFits, NotFound, QuireError, Unavailable
from cluster.sampling import SamplingParams
from cluster.sizes import counted

HELP = """\
/system TEXT       what the model is told first; no TEXT: nothing
/temperature X     0 always takes the likeliest token; no X: the model's own
/seed N            the same seed draws the same answers; no N: new ones
/retry             ask the last question again
/clear             forget what was said
/save FILE         write the conversation as JSON; an existing file is kept
/help              this
/quit, Ctrl-D      leave
Ctrl-C ends an answer. A line that ends with \\ goes on in the next;
\"\"\" begins and ends several lines."""
LEFT = "note: the model's context is full, so the oldest turns are not sent any more"


def register(app: typer.Typer) -> None:
    app.command()(chat)


def chat(
    address: GatewayOption = None,
    token_file: TokenOption = None,
    model: Annotated[str, typer.Option(help="Which model. Default: the cluster's own.", show_default=False)] = "",
    system: Annotated[
        str, typer.Option(help="What the model is told first. Default: nothing.", show_default=False)
    ] = "",
    max_tokens: Annotated[int, typer.Option(help="At most so many tokens an answer.")] = 300,
    temperature: Annotated[
        float | None, typer.Option(help="0 always takes the likeliest token. Default: the model's.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed draws the same answers. Default: new ones.", show_default=False)
    ] = None,
) -> None:
    """Talk with a model.

    /help lists what can be said to the command itself; Ctrl-D ends it.
    """
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
    with open_client(address, token_file) as client:
        talk = ChatConversation(client, model, params, system)
        if sys.stdin.isatty():
            talk.check()
            _at_a_terminal(talk)
            return
        for line in sys.stdin:
            if line.strip():
                _say(talk, line.rstrip("\n"))


def _at_a_terminal(talk: ChatConversation) -> None:
    from cluster.lifecycle.running import state_folder

    with LineEditor(state_folder() / "chat_history") as editor:
        for line in editor.lines("> "):
            try:
                if line.startswith("/"):
                    if not _command(talk, line):
                        return
                else:
                    _say(talk, line)
            except QuireError as error:
                print(f"error: {error}", file=sys.stderr)


def _say(talk: ChatConversation, line: str) -> None:
    """Prints an answer as it comes. A Ctrl-C at a terminal ends it there."""
    try:
        with closing(talk.ask(line)) as pieces:
            for piece in pieces:
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        interrupts.dealt_with()
    finally:
        print(flush=True)


def _command(talk: ChatConversation, line: str) -> bool:
    """Does what a line that begins with / says. False: leave."""
    word, _, rest = line[1:].partition(" ")
    rest = rest.strip()
    if word in ("quit", "exit", "bye"):
        return False
    if word == "system":
        talk.system = rest
    elif word == "temperature":
        talk.set(temperature=_number(word, rest, float))
    elif word == "seed":
        talk.set(seed=_number(word, rest, int))
    elif word == "retry":
        _say(talk, talk.take_back())
    elif word == "clear":
        talk.clear()
    elif word == "save":
        talk.save(rest)
    else:
        print(HELP if word == "help" else f"/{word} is not known; /help lists what is")
    return True


def _number(word: str, text: str, kind: type) -> float | int | None:
    try:
        value: float | int | None = kind(text) if text else None
    except ValueError as error:
        raise InvalidRequest(f"/{word} {text}", "is no number", "give one, or nothing") from error
    return value


@dataclass(slots=True)
class ChatConversation:
    """What was said, and how to go on. `messages` are turns without the system's words; the last is an answer."""

    client: Client
    model: str
    params: SamplingParams
    system: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    # How many messages at the beginning are not sent any more, and the question that failed.
    num_left: int = 0
    failed: str = ""
    _room: int = 0

    def check(self) -> None:
        """Raises `QuireError` where there is nobody to talk with, before the first question is typed."""
        self._context()

    def set(self, **settings: float | int | None) -> None:
        self.params = replace(self.params, **settings)  # type: ignore[arg-type]

    def clear(self) -> None:
        self.messages.clear()
        self.num_left, self.failed = 0, ""

    def take_back(self) -> str:
        """The last question, with its answer forgotten. Raises `InvalidRequest`."""
        if self.failed:
            return self.failed
        if not self.messages:
            raise InvalidRequest("/retry", "has nothing to ask again", "ask something first")
        question = self.messages[-2]["content"]
        del self.messages[-2:]
        return question

    def ask(self, question: str) -> Generator[str, None, None]:
        """The pieces of an answer as they come. Whoever leaves early ends it, and what came is kept; so is what was
        said before when it fails."""
        self.failed, answer = question, ""
        asked = self._fitting([*self.messages, {"role": "user", "content": question}])
        try:
            with closing(self.client.stream(asked, self.params, Options(model=self.model))) as stream:
                for news in stream:
                    answer += news.text
                    yield news.text
            self.failed = ""
        finally:
            if answer or not self.failed:
                self.failed = ""
                self.messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def _fitting(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """With the system's words, without the oldest turns that leave no room for an answer."""
        before = [{"role": "system", "content": self.system}] if self.system else []
        limit = self._context()
        room = min(self.params.max_tokens or limit, limit // 2)
        num_left = self.num_left
        while True:
            asked = [*before, *messages[num_left:]]
            try:
                num_tokens = len(self.client.tokenize(asked, model=self.model))
            except NeverFits:
                num_tokens = limit + 1
            if num_tokens + room <= limit or len(messages) - num_left <= 1:
                break
            num_left += 2
        if num_left > self.num_left:
            if not self.num_left:
                print(LEFT, file=sys.stderr)
            self.num_left = num_left
        return asked

    def _context(self) -> int:
        """Tokens that the model reads at most."""
        if not self._room:
            models = self.client.models()
            if not models:
                raise Unavailable(NONE_SERVED)
            chosen = [one for one in models if (one.name == self.model if self.model else one.is_default)]
            if not chosen:
                names = ", ".join(sorted(one.name for one in models))
                problem = f"no model {self.model!r} is served; there is" if self.model else "--model is to be one of"
                raise NotFound(f"{problem} {names}")
            if not chosen[0].has_chat_template:
                remedy = "`quire generate` writes on from a text"
                raise InvalidRequest("chat", f"model {chosen[0].name} has no chat template", remedy)
            self._room = chosen[0].max_model_len
        return self._room

    def save(self, name: str) -> None:
        """Writes all messages as JSON into a file that is not there yet. Raises `InvalidRequest`."""
        if not name:
            raise InvalidRequest("/save", "has no file", "name one")
        system = [{"role": "system", "content": self.system}] if self.system else []
        try:
            descriptor = os.open(Path(name).expanduser(), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump({"messages": [*system, *self.messages]}, file, indent=1, ensure_ascii=False)
                file.write("\n")
        except OSError as error:
            raise InvalidRequest("/save", f"{name}: {error.strerror}", "name another file") from error
        print(f"saved: {counted(len(system) + len(self.messages), 'message')} in {name}")
