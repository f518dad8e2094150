"""What commands that speak to the operators' door have in common: where it is, and whom they speak for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.errors import ConfigError, Unavailable
from cluster.private_files import token_of

if TYPE_CHECKING:
    from cluster.serving.admin_client import Admin

AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="The operators' door, HOST:PORT; where it has TLS, QUIRE_TLS_AUTHORITY names its authority. Default: that "
        "of `quire up`.",
        show_default=False,
    ),
]
TokenOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        help="A file with an operator's token, for --address. Default: QUIRE_ADMIN_TOKEN_FILE, or QUIRE_ADMIN_TOKEN "
        "itself.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def open_admin(address: str | None, token_file: Path | None) -> Admin:
    """The door that was given, else that of the cluster that this user has up. Raises `QuireError`."""
    if not address:
        from cluster.lifecycle.running import Running

        if token_file is not None:
            raise ConfigError("--token-file is for --address; the commands of who started the cluster need none")
        running = Running.load()
        if running is None or not running.admin:
            raise Unavailable("no cluster of this user is up; start one with `quire up`, or give --address")
        return running.admin_client()
    from cluster.serving.admin_channel import admin_channel
    from cluster.serving.admin_client import Admin

    token, authority = token_of("QUIRE_ADMIN_TOKEN", token_file), os.environ.get("QUIRE_TLS_AUTHORITY", "")
    return Admin(address, admin_channel(address, token or "", authority), has_tls=bool(authority))
