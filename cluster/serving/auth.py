"""Who may ask: bearer tokens that stand for tenants and rights, and the rule that an open port needs TLS and tokens.

Gateways and admin doors ask `TokenBook.caller` once per call. A book holds only digests of tokens, compared in constant
time and without an early end, so that neither a copy of the file nor a stopwatch gives a token away. Certificates are
made in `cluster/serving/auth_certificates.py`; nothing here opens a port.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cluster.errors import AccessDenied, ConfigError, NotAuthenticated

Right = Literal["inference", "admin"]
RIGHTS: tuple[Right, ...] = get_args(Right)
LOCAL_TENANT = "local"
MAX_TOKEN_CHARS = 512


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever made a call: requests, prefixes and usage are the tenant's."""

    tenant: str
    rights: frozenset[str]

    def require(self, right: Right) -> None:
        if right not in self.rights:
            raise AccessDenied(f"the token of tenant {self.tenant} has no right to {right}; ask for one that has")


LOCAL = Caller(LOCAL_TENANT, frozenset(RIGHTS))
"""A caller on the same machine, where no tokens are set up."""


@dataclass(frozen=True, slots=True)
class Entry:
    digest: bytes
    caller: Caller


class TokenBook:
    """The tokens that a door takes. An empty book takes every caller as the local tenant."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries = tuple(entries)

    def __bool__(self) -> bool:
        return bool(self._entries)

    def with_entry(self, entry: Entry) -> TokenBook:
        return TokenBook((*self._entries, entry))

    def caller(self, authorization: str | None) -> Caller:
        """The caller behind an `authorization: Bearer TOKEN` header. Raises `NotAuthenticated`."""
        if not self._entries:
            return LOCAL
        if authorization is None:
            raise NotAuthenticated(
                "no token: give QUIRE_TOKEN or --token-file, or the header `authorization: Bearer TOKEN`"
            )
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token or len(token) > MAX_TOKEN_CHARS:
            raise NotAuthenticated("the authorization header must read `Bearer TOKEN`")
        digest = digest_of(token.strip())
        found: Caller | None = None
        for entry in self._entries:
            # Every entry is compared, wherever the one that matches stands.
            if hmac.compare_digest(entry.digest, digest):
                found = entry.caller
        if found is None:
            raise NotAuthenticated("this token is not known here")
        return found


def digest_of(token: str) -> bytes:
    """Tokens are 256 random bits, so that a plain digest cannot be searched."""
    return hashlib.sha256(token.encode()).digest()


def new_token() -> str:
    return secrets.token_urlsafe(32)


def load_tokens(path: Path) -> TokenBook:
    """Reads a token file: a JSON list of {"tenant": ..., "sha256": ..., "rights": [...]}. Raises `ConfigError`."""
    try:
        listed = json.loads(path.read_text())
        if not isinstance(listed, list) or not listed:
            raise ValueError("it must be a list with at least one entry")
        return TokenBook([_entry(item) for item in listed])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"token file {path}: {error}; `make_tokens` writes a good one") from error


def _entry(item: Mapping[str, object]) -> Entry:
    digest = bytes.fromhex(str(item["sha256"]))
    if len(digest) != 32:
        raise ValueError(f"a sha256 of {len(digest)} bytes for tenant {item['tenant']}")
    rights = item.get("rights", ["inference"])
    if not isinstance(rights, list) or not set(rights) <= set(RIGHTS):
        raise ValueError(f"rights {rights!r}; there are {', '.join(RIGHTS)}")
    tenant = str(item["tenant"])
    if not tenant or len(tenant) > 128 or "/" in tenant:
        raise ValueError(f"tenant {tenant!r}: give 1 to 128 characters without a slash")
    return Entry(digest, Caller(tenant, frozenset(map(str, rights))))


def make_tokens(path: Path, tenants: Sequence[tuple[str, Sequence[Right]]]) -> dict[str, str]:
    """Writes a token file with a new token for each tenant, and returns the tokens: they stand nowhere else."""
    tokens = {tenant: new_token() for tenant, _ in tenants}
    listed = [
        {"tenant": tenant, "sha256": digest_of(tokens[tenant]).hex(), "rights": list(rights)}
        for tenant, rights in tenants
    ]
    for item in listed:
        _entry(item)
    write_private(path, json.dumps(listed, indent=2).encode() + b"\n")
    return tokens


def write_private(path: Path, content: bytes) -> None:
    """Writes a file that only its owner can read, from its first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    temporary.replace(path)


def is_loopback(host: str) -> bool:
    """True if only this machine can reach a port on `host`."""
    if host == "localhost" or host.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, has_tls: bool, has_tokens: bool) -> None:
    """Raises `ConfigError` for a port that others could reach without TLS and tokens."""
    if is_loopback(host) or (has_tls and has_tokens):
        return
    missing = " and ".join(
        what for what, there in (("a TLS certificate", has_tls), ("a token file", has_tokens)) if not there
    )
    raise ConfigError(
        f"listening on {host} lets other machines in, and {missing} is missing; "
        f"give both (`quire certificates FOLDER` makes a first set), or listen on 127.0.0.1"
    )
