"""How commands reach a gateway: where it is, whom they speak for, and by which authority they know it.

Tokens come from the environment or from a file, never from the command line, which every user of a machine can read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cluster.client.asynchronous import AsyncClient
from cluster.client.blocking import Client
from cluster.client.connection import Tls
from cluster.errors import Unavailable
from cluster.private_files import token_of

GatewayOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="A gateway, HOST:PORT; where it has TLS, QUIRE_TLS_AUTHORITY names its authority. Default: that of "
        "`quire up`.",
        show_default=False,
    ),
]
TokenOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        help="A file with the caller's token, readable by you only. Default: QUIRE_TOKEN_FILE, or the token itself in "
        "QUIRE_TOKEN.",
        show_default=False,
    ),
]


def open_client(address: str | None, token_file: Path | None) -> Client:
    """Of the gateway that was given, else of the cluster that this user has up."""
    addresses, tls = _where(address)
    return Client(addresses, token=token_of("QUIRE_TOKEN", token_file), tls=tls)


def open_async_client(address: str | None, token_file: Path | None) -> AsyncClient:
    """The same for a command that runs a loop."""
    addresses, tls = _where(address)
    return AsyncClient(addresses, token=token_of("QUIRE_TOKEN", token_file), tls=tls)


def _where(address: str | None) -> tuple[Sequence[str], Tls | None]:
    shown = os.environ.get("QUIRE_CLIENT_CERTIFICATE"), os.environ.get("QUIRE_CLIENT_KEY")
    if address:
        authority = os.environ.get("QUIRE_TLS_AUTHORITY")
        return [address], Tls(authority, *shown) if authority else None
    from cluster.lifecycle.running import Running

    running = Running.load()
    if running is None or not running.gateway:
        raise Unavailable("no cluster of this user is noted; start one with `quire up`, give --address, or add --local")
    has_tls = running.settings["tls_certificate"]
    return running.gateways, Tls(running.settings["tls_authority"] or None, *shown) if has_tls else None
