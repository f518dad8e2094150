"""`quire certificates` and `quire tenants`: what a door needs before it may listen beyond its own machine, and who may
come in, both changed while the cluster serves.

Certificates are of an authority of the cluster's own. Tokens are printed once and stand nowhere else: files hold their
digests. Doors read both anew when the files change.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.bench.report import Row, render
from cluster.errors import ConfigError, NotFound
from cluster.private_files import check_folder, in_turn
from cluster.sizes import counted

TokensOption = Annotated[
    Path | None,
    typer.Option(
        "--tokens",
        help="The token file. Default: QUIRE_TOKENS, or that of the cluster that this user has up.",
        show_default=False,
    ),
]
NEXT_CALL = "it counts from the next call on, at every door that uses"


def register(app: typer.Typer) -> None:
    app.command()(certificates)
    tenants = typer.Typer(help="Who may come in: tenants and their tokens.")
    tenants.command("add")(add)
    tenants.command("list")(listed)
    tenants.command("revoke")(revoke)
    app.add_typer(tenants, name="tenants", context_settings={"help_option_names": ["-h", "--help"]})


def certificates(
    words: Annotated[
        list[str],
        typer.Argument(metavar="[renew] FOLDER", help="Where the files go; renew: new ones of its authority."),
    ],
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="A name or address that clients connect to; repeatable. Default: localhost, 127.0.0.1; those that "
            "there are when they are renewed.",
            show_default=False,
        ),
    ] = None,
    tenant: Annotated[
        list[str] | None,
        typer.Option(help="A tenant that gets a token; repeatable. Default: default.", show_default=False),
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="How long the certificates hold.")] = 825,
) -> None:
    """Make TLS certificates and tokens, or renew certificates."""
    if words[:1] == ["renew"]:
        if len(words) != 2 or tenant:
            raise ConfigError("give `quire certificates renew FOLDER`; tokens are changed by `quire tenants`")
        _renew(Path(words[1]), host or [], days)
        return
    if len(words) != 1:
        raise ConfigError(f"{len(words)} folders are given; give one, or renew and one")
    _first_set(Path(words[0]), host or ["localhost", "127.0.0.1"], tenant or ["default"], days)


def _first_set(folder: Path, hosts: list[str], tenants: list[str], days: int) -> None:
    from cluster.serving.auth import Right, make_tokens
    from cluster.serving.auth_certificates import make_certificates

    book = folder / "tokens.json"
    if book.exists():
        raise ConfigError(f"{book} exists already; remove it, name another folder, or see `quire tenants`")
    check_folder(folder, "the folder", "name another")
    files = make_certificates(folder, hosts, days)
    rights: list[tuple[str, list[Right]]] = [(name, ["inference"]) for name in tenants]
    tokens = make_tokens(book, [*rights, ("operator", ["inference", "admin"])])
    print(f"server: {files.server_certificate} {files.server_key}, tokens {book}")
    print(f"client: {files.authority}; for mutual TLS also {files.client_certificate} {files.client_key}")
    print(f"for `quire certificates renew`: {files.authority_key}; who has it can make certificates that clients trust")
    for name, token in tokens.items():
        print(f"token of {name}: {token}")
    print("The tokens are shown only now.")


def _renew(folder: Path, hosts: list[str], days: int) -> None:
    from cluster.serving.auth_certificates import renew_certificates

    files = renew_certificates(folder, hosts, days)
    until = (datetime.now(UTC) + timedelta(days=days)).date()
    print(f"{files.server_certificate} and {files.client_certificate} hold until {until}")
    print(f"Clients keep {files.authority}.")
    print("Doors that use them show them from the next connection on.")


def add(
    tenant: Annotated[str, typer.Argument(help="1 to 128 characters without a slash.")],
    right: Annotated[
        list[str] | None,
        typer.Option(help="inference or admin; repeatable. Default: inference.", show_default=False),
    ] = None,
    days: Annotated[
        float | None, typer.Option(help="How long the token holds. Default: until it is revoked.", show_default=False)
    ] = None,
    tokens: TokensOption = None,
) -> None:
    """A new token for a tenant, printed once; those that it has stay."""
    from cluster.serving.auth import RIGHTS, make_token, read_entries, read_list, write_list

    path = _token_file(tokens)
    rights: list[Any] = right or ["inference"]
    for one in rights:
        if one not in RIGHTS:
            raise ConfigError(f"--right is {one!r}; give {' or '.join(RIGHTS)}")
    if days is not None and not 0 < days <= 36_500:
        raise ConfigError(f"--days is {days:g}; give more than 0 and at most 36,500")
    expires = None if days is None else datetime.now(UTC) + timedelta(days=days)
    token, item = make_token(tenant, rights, expires)
    with in_turn(path):
        known: list[dict[str, Any]] = []
        if path.exists():
            read_entries(path)
            known = read_list(path)
        write_list(path, [*known, item])
    print(f"token of {tenant}: {token}")
    print(f"It is shown only now; {NEXT_CALL} {path}.")


def listed(tokens: TokensOption = None) -> None:
    """The tenants of the token file, what each may do, and until when."""
    from cluster.serving.auth import read_entries

    path = _token_file(tokens)
    now = datetime.now(UTC).timestamp()
    rows: list[Row] = [
        {
            "tenant": entry.caller.tenant,
            "rights": ", ".join(sorted(entry.caller.rights)),
            "until": _until(entry.until, now),
            "sha256": f"{entry.digest.hex()[:12]}...",
        }
        for entry in read_entries(path)
    ]
    print(render(rows) if rows else f"{path} lets nobody in; `quire tenants add NAME` changes that")


def _until(until: float | None, now: float) -> str:
    if until is None:
        return "it is revoked"
    told = datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{told}, expired" if until <= now else told


def revoke(
    tenant: Annotated[str, typer.Argument(help="As `quire tenants list` shows it.")], tokens: TokensOption = None
) -> None:
    """Take back all tokens of a tenant.

    What runs for it ends by itself; nothing new is taken.
    """
    from cluster.serving.auth import read_entries, read_list, write_list

    path = _token_file(tokens)
    with in_turn(path):
        read_entries(path)
        known = read_list(path)
        left = [item for item in known if str(item["tenant"]) != tenant]
        if len(left) == len(known):
            names = ", ".join(sorted({str(item["tenant"]) for item in known})) or "nobody"
            raise NotFound(f"no tenant {tenant} is in {path}; there is {names}")
        write_list(path, left)
    count = len(known) - len(left)
    print(f"{counted(count, 'token')} of {tenant} taken back; {NEXT_CALL} {path}")


def _token_file(given: Path | None) -> Path:
    from cluster.lifecycle.running import Running

    running = Running.load()
    noted = "" if running is None else str(running.settings.get("tokens") or "")
    path = str(given or "") or os.environ.get("QUIRE_TOKENS", "") or noted
    if not path:
        raise ConfigError("which token file? Give --tokens FILE; the cluster of this user, if any, takes no tokens")
    return Path(path)
