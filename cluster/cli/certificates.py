"""`quire certificates`: what a gateway needs before it may listen beyond its own machine, for a first set-up.

Writes certificates of an authority of the cluster's own and a file of token digests. The tokens themselves are printed
once and stand nowhere else. It overwrites nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import ConfigError
from cluster.private_files import check_folder


def register(app: typer.Typer) -> None:
    app.command()(certificates)


def certificates(
    folder: Annotated[Path, typer.Argument(help="Where the files go.")],
    host: Annotated[list[str] | None, typer.Option(help="A name or address that clients connect to.")] = None,
    tenant: Annotated[list[str] | None, typer.Option(help="A tenant that gets a token.")] = None,
    days: Annotated[int, typer.Option(min=1, help="How long the certificates hold.")] = 825,
) -> None:
    """Make TLS certificates and tokens for a first set-up."""
    from cluster.serving.auth import Right, make_tokens
    from cluster.serving.auth_certificates import make_certificates

    book = folder / "tokens.json"
    if book.exists():
        raise ConfigError(f"{book} exists already; remove it or name another folder")
    check_folder(folder, "the folder", "name another")
    files = make_certificates(folder, host or ["localhost", "127.0.0.1"], days)
    rights: list[tuple[str, list[Right]]] = [(name, ["inference"]) for name in tenant or ["default"]]
    tokens = make_tokens(book, [*rights, ("operator", ["inference", "admin"])])
    print(f"server: {files.server_certificate} {files.server_key}, tokens {book}")
    print(f"client: {files.authority}; for mutual TLS also {files.client_certificate} {files.client_key}")
    for name, token in tokens.items():
        print(f"token of {name}: {token}")
    print("The tokens are shown only now.")
