"""Files that hold what is not for everybody: written so that only their owner can read them, and not believed when
somebody else could have written them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from cluster.errors import ConfigError, unreadable

MAX_BYTES = 16 << 20
TURN_S = 10.0


def write_private(path: Path, content: bytes) -> None:
    """Writes a file that only its owner can read, from its first byte on; whole or not at all. Raises `ConfigError`."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}; make room there, or give another place"
        ) from error


@contextlib.contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Of those who read this file in order to change it one goes after the other. Raises `ConfigError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The file itself is another one after each change.
        folder, until = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY), time.monotonic() + TURN_S
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    try:
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise ConfigError(f"{path} is being changed by another command; try again") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(folder)


def read_private(path: Path, what: str) -> bytes:
    """The content of a file that nobody but its owner and root could have written. Raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            check_private(path, os.fstat(file.fileno()), what)
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise unreadable(f"{what}: {path}", error) from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{what}: {path} is larger than {MAX_BYTES >> 20} MiB; is it the right file?")
    return content


def check_private(path: Path, found: os.stat_result, what: str) -> None:
    """Raises `ConfigError` where others could have written the file."""
    if found.st_uid not in (os.getuid(), 0):
        raise ConfigError(f"{what}: {path} belongs to another user (id {found.st_uid}); make it yours with chown")
    if stat.S_ISREG(found.st_mode) and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{what}: {path} can be written by others (mode {found.st_mode & 0o777:o}); chmod 600 {path}")


def check_folder(folder: Path, what: str, remedy: str) -> None:
    """Makes the folder where it is missing. Raises `ConfigError` where nothing can be written there."""
    probe = folder / f".probe-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"{what} {folder} cannot be written: {error.strerror}; {remedy}") from error


def check_file(path: Path, what: str, remedy: str) -> None:
    """Raises `ConfigError` where this file cannot be written; leaves what stands in it."""
    try:
        existed = path.exists()
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        if not existed:
            path.unlink()
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be written: {error.strerror}; {remedy}") from error


def token_of(variable: str, file: Path | None) -> str | None:
    """The token in `file`, or in the file that VARIABLE_FILE names, or in VARIABLE. Raises `ConfigError`."""
    named = os.environ.get(f"{variable}_FILE")
    path = file or (Path(named) if named else None)
    if path is None:
        return os.environ.get(variable) or None
    token = read_private(path, "the token").decode(errors="replace").strip()
    if not token or any(letter.isspace() for letter in token):
        raise ConfigError(f"{path} holds no token: it must be one word, as `quire certificates` prints it")
    return token
