"""`quire page`: the cluster in a browser, on a port of this machine alone."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.admin import AddressOption, TokenOption, open_admin
from cluster.errors import ConfigError

if TYPE_CHECKING:
    from cluster.page.play import Gateways

PORTS_TO_TRY = 20


def register(app: typer.Typer) -> None:
    app.command()(page)


def page(
    address: AddressOption = None,
    token_file: TokenOption = None,
    port: Annotated[int, typer.Option(help="The port, or the next that is free.", min=1, max=65535)] = 8001,
    gateway: Annotated[
        list[str] | None, typer.Option(help="For the playground, beside --address; repeatable. Default: none.")
    ] = None,
) -> None:
    """Show the cluster in a browser.

    The memory map, requests and why they wait, workers, tenants, a playground.
    """
    try:
        from cluster.page.serve import Page, server_of
    except ModuleNotFoundError as error:
        raise ConfigError(f"the page needs {error.name}: pip install 'quire[http]'") from error
    shown = Page(open_admin(address, token_file), _gateways(address, gateway or []))
    listening = _bind(port)
    print(f"http://127.0.0.1:{listening.getsockname()[1]}/#{shown.key}  (Ctrl-C ends it)", flush=True)
    server_of(shown).run(sockets=[listening])


def _gateways(address: str | None, given: list[str]) -> Gateways:
    """Those that were named, else those of the cluster that this user has up."""
    from cluster.client.connection import Tls
    from cluster.lifecycle.running import Running
    from cluster.page.play import Gateways

    authority, has_tls, found = os.environ.get("QUIRE_TLS_AUTHORITY", ""), False, tuple(given)
    running = None if address else Running.load()
    if running is not None:
        authority, has_tls = str(running.settings["tls_authority"]), bool(running.settings["tls_certificate"])
        found = found or tuple(running.gateways)
    return Gateways(found, Tls(authority or None) if has_tls or authority else None)


def _bind(first: int) -> socket.socket:
    for port in range(first, min(first + PORTS_TO_TRY, 65536)):
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError as error:
            why = error
    raise ConfigError(f"no port is free from {first} on: {why}; give another --port")
