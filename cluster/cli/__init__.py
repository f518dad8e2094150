"""The command line `quire`: finds the command, runs it, and turns every error into one line and an exit code.

Each file of this folder holds one group of commands and registers it; it imports what is heavy (torch, ray, grpc)
inside the command, so that `quire --help` is quick and the client's install is enough for the client's commands.
"""

from __future__ import annotations

import os
import select
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.main import get_command

from cluster import __version__
from cluster.cli import exits, interrupts
from cluster.errors import QuireError

# Set while a shell asks what can follow.
COMPLETION = "_QUIRE_COMPLETE"
HELP_NAMES = {"help_option_names": ["-h", "--help"]}
# Files of this folder with `register(app)`, in the order of the help page.
GROUPS = (
    "up",
    "generate",
    "chat",
    "status",
    "operate",
    "models",
    "top",
    "page",
    "logs",
    "doctor",
    "size",
    "certificates",
    "replay",
    "simulate",
    "torture",
    "bench",
)


def build() -> Any:
    """The whole command line as one command of typer's."""
    app = typer.Typer(
        name="quire",
        help="Serve language models from paged memory.",
        epilog=exits.EPILOG,
        context_settings=HELP_NAMES,
        # --install-completion and --show-completion, for bash, zsh, fish and PowerShell.
        add_completion=True,
        pretty_exceptions_enable=False,
        # Boxes only where somebody looks at them.
        rich_markup_mode="rich" if sys.stdout.isatty() else None,
    )
    app.callback()(_options)
    with _quiet_grpc():
        groups = [import_module(f"cluster.cli.{group}") for group in GROUPS]
    for group in groups:
        group.register(app)
    command = get_command(app)
    _name_kinds(command)
    return command


def _name_kinds(command: Any) -> None:
    """Shows a list of texts as `str`, drops the word range, and shows no kind for a flag. Earlier versions of typer
    have words of their own."""
    for one in getattr(command, "commands", {}).values():
        _name_kinds(one)
    context = typer.Context(command, **{**HELP_NAMES, **command.context_settings})
    for option in command.get_params(context):
        if option.param_type_name == "option" and option.metavar is None and hasattr(option, "display_type"):
            kind = option.display_type(context).replace("list[str]", "str").replace(" range", "")
            option.metavar = "" if option.is_flag else kind


@contextmanager
def _quiet_grpc() -> Iterator[None]:
    """gRPC's own lines about a handshake that failed would stand beside ours. It reads what it shall say when it is
    imported; processes that are started from here have it as it was."""
    before = os.environ.get("GRPC_VERBOSITY")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        yield
    finally:
        if before is None:
            del os.environ["GRPC_VERBOSITY"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code; the console script `quire` exits with it."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = bool(os.environ.get("QUIRE_DEBUG"))
    # Taken out wherever it stands, but not out of what a benchmark gets.
    own = words.index("bench") if "bench" in words else len(words)
    if "--debug" in words[:own]:
        words.remove("--debug")
        debug = True
    if COMPLETION not in os.environ:
        with _quiet_grpc():
            from cluster.cli.environment import misspelt
        for line in misspelt(os.environ):
            print(f"note: {line}", file=sys.stderr)
    with interrupts.second_leaves():
        return _run(words, debug)


def _run(words: list[str], debug: bool) -> int:
    try:
        code = build()(args=words or ["--help"], prog_name="quire", standalone_mode=False)
        sys.stdout.flush()
        # typer turns Ctrl-C into this code by itself.
        return _interrupted(debug) if code == exits.INTERRUPTED else int(code or exits.DONE)
    except QuireError as error:
        return _fail(str(error), exits.code_of(error), debug)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted(debug)
    except BrokenPipeError as error:
        return _unread() if _nobody_reads() else _fail(_of_a_pipe(error), exits.FAILED, debug)
    except SystemExit as leaving:
        # typer leaves like this when anything under the command met a closed pipe: our reader's, or another one.
        if not isinstance(leaving.__context__, BrokenPipeError):
            raise
        if not _nobody_reads():
            return _fail(_of_a_pipe(leaving.__context__), exits.FAILED, debug)
        return _unread()
    except Exception as error:
        # typer's own exceptions, whose class moved between its versions, tell what is wrong with the command line.
        told = getattr(error, "format_message", None)
        if told is not None:
            line = " ".join(told().split()).partition(", unable to parse")[0].rstrip(".")
            where = getattr(getattr(error, "ctx", None), "command_path", "quire")
            end = "" if line.endswith("?") else ";"
            return _fail(f"{line}{end} `{where} --help` lists what there is", exits.WRONG_INPUT, debug)
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] not in ("cluster", "worker"):
            remedy = "this command needs the serving side: pip install 'quire[serve]'"
            return _fail(f"the package {error.name} is not installed; {remedy}", exits.WRONG_INPUT, debug)
        return _fail(f"{type(error).__name__}: {error} (--debug shows where)", exits.FAILED, debug)


def _nobody_reads() -> bool:
    """Whether it is our own output whose reader has gone; any other broken pipe is a failure like others."""
    watch = select.poll()
    watch.register(1, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(0))


def _of_a_pipe(error: BrokenPipeError) -> str:
    return f"a process that this command talked to has ended ({error}); was it killed, or did memory run out?"


def _unread() -> int:
    """Whoever read our output has seen enough. Python would complain once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exits.DONE


def _interrupted(debug: bool) -> int:
    """What was printed goes out here, where a second Ctrl-C is still heard."""
    if debug:
        traceback.print_exc()
    interrupts.tell()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _unread()
    return exits.INTERRUPTED


def _fail(line: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {line}", file=sys.stderr)
    return code


def _version(wanted: bool) -> None:
    if wanted:
        print(f"quire {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_version),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback with an error. Also: QUIRE_DEBUG=1.")
    ] = False,
) -> None:
    """Serve language models from paged memory that is spread over many GPUs and owned by one ledger."""
