"""What the command line asks of a gateway: streams of several prompts, a conversation, a batch from a file.

Uses the client of the base install. A batch can be started again where it stopped: answers are written as they come,
each with the number of its line, and lines that have an answer are not asked again.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.cli.generate import show
from cluster.client.blocking import Client
from cluster.client.connection import Tls
from cluster.client.request import Options, Prompt
from cluster.errors import InvalidRequest, QuireError, Unavailable
from cluster.sampling import SamplingParams

# Prompts of a batch that are under way at once.
WINDOW = 64


def register(app: typer.Typer) -> None:
    app.command()(chat)


def open_client(address: str | None, token: str | None) -> Client:
    """Of the gateway that was given, with QUIRE_TLS_AUTHORITY, else of the cluster that this user has up."""
    if address:
        authority = os.environ.get("QUIRE_TLS_AUTHORITY")
        return Client(address, token=token, tls=Tls(authority) if authority else None)
    from cluster.lifecycle.running import Running

    running = Running.load()
    if running is None:
        raise Unavailable("no cluster of this user is noted; start one with `quire up`, give --address, or add --local")
    has_tls = running.settings["tls_certificate"]
    return Client(running.gateway, token=token, tls=Tls(running.settings["tls_authority"] or None) if has_tls else None)


def ask(
    address: str | None,
    token: str | None,
    model: str,
    prompts: list[str],
    chats: list[str],
    sampling: SamplingParams,
    quiet: bool,
) -> None:
    """All prompts at once through one stream, shown while they are written."""
    asked: list[Prompt] = [*prompts, *([{"role": "user", "content": question}] for question in chats)]
    with open_client(address, token) as client:
        show(client.stream_many(asked, sampling, Options(model=model)), prompts, chats, quiet)


def chat(
    address: Annotated[str | None, typer.Option(help="A gateway. Default: that of `quire up`.")] = None,
    token: Annotated[str | None, typer.Option(help="Token of the caller.", envvar="QUIRE_TOKEN")] = None,
    model: Annotated[str, typer.Option(help="Which model, where several are served.")] = "",
    max_tokens: Annotated[int, typer.Option(help="At most so many tokens an answer.")] = 300,
    temperature: Annotated[float | None, typer.Option(help="0 always takes the likeliest token.")] = None,
) -> None:
    """Talk with a model. An empty line or Ctrl-D ends it."""
    messages: list[Mapping[str, str]] = []
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature)
    with open_client(address, token) as client:
        for line in _lines():
            messages.append({"role": "user", "content": line})
            answer = ""
            for news in client.stream(messages, params, Options(model=model)):
                print(news.text, end="", flush=True)
                answer += news.text
            print()
            messages.append({"role": "assistant", "content": answer})


def _lines() -> Iterator[str]:
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def run_batch(
    file: Path, out: Path | None, address: str | None, token: str | None, model: str, sampling: SamplingParams
) -> None:
    """Answers every line of `file` into `out`, a window at a time, and says how many could not be answered."""
    from rich.progress import Progress

    if out is None:
        raise InvalidRequest("out", "is not given", "say where the answers go: --out FILE")
    prompts = _read(file)
    done = _answered(out)
    left = [number for number in range(len(prompts)) if number not in done]
    num_failed = 0
    with (
        open_client(address, token) as client,
        out.open("a", encoding="utf-8") as answers,
        Progress(disable=not sys.stderr.isatty()) as progress,
    ):
        bar = progress.add_task(f"{file.name}", total=len(prompts), completed=len(done))
        for first in range(0, len(left), WINDOW):
            numbers = left[first : first + WINDOW]
            try:
                results = client.try_many([prompts[number] for number in numbers], sampling, Options(model=model))
            except KeyboardInterrupt:
                print(f"{len(done) + first:,} of {len(prompts):,} are answered; run it again to go on", file=sys.stderr)
                raise
            for number, result in zip(numbers, results, strict=True):
                if isinstance(result, QuireError):
                    num_failed += 1
                    print(f"line {number + 1}: {result}", file=sys.stderr)
                    continue
                texts = [output.text for output in result.outputs]
                reasons = [output.finish_reason for output in result.outputs]
                answers.write(json.dumps({"line": number + 1, "texts": texts, "finish_reasons": reasons}) + "\n")
            answers.flush()
            progress.advance(bar, len(numbers))
    print(f"{len(left) - num_failed} answered, {len(done)} were there before, {num_failed} failed", file=sys.stderr)
    if num_failed:
        raise typer.Exit(1)


def _read(file: Path) -> list[Prompt]:
    """One prompt a line: a JSON string, or an object with `prompt`, `prompt_token_ids` or `messages`."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest("file", f"{file} cannot be read: {error}", "give a file of JSON lines") from error
    prompts: list[Prompt] = []
    for number, line in enumerate(lines, 1):
        try:
            read: Any = json.loads(line)
        except ValueError as error:
            raise InvalidRequest(
                "file", f"line {number} of {file} is no JSON: {error}", "give one object a line"
            ) from error
        prompts.append(read["messages"] if isinstance(read, dict) and "messages" in read else read)
    return prompts


def _answered(out: Path) -> set[int]:
    """Lines that have an answer already; what a killed run left half-written at the end is taken away."""
    if not out.exists():
        return set()
    whole, done = [], set()
    for line in out.read_text(encoding="utf-8").splitlines():
        try:
            done.add(int(json.loads(line)["line"]) - 1)
            whole.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    out.write_text("".join(whole), encoding="utf-8")
    return done
