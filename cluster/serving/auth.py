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
import logging
import os
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from cluster.errors import AccessDenied, ConfigError, NotAuthenticated
from cluster.private_files import read_private, write_private
from cluster.tenants import NO_LIMITS, TenantLimits

log = logging.getLogger(__name__)

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
class TokenEntry:
    digest: bytes
    caller: Caller
    # Seconds of Unix time from which on it is not taken any more; None: it does not expire.
    until: float | None = None
    # What its tenant may have; None: another entry says so, or nobody.
    limits: TenantLimits | None = None


class TokenBook:
    """The tokens that a door takes. An empty book without a file takes every caller as the local tenant; one with a
    file follows that: what is written there counts from the next call on."""

    def __init__(
        self, entries: Iterable[TokenEntry] = (), file: Path | None = None, own: Sequence[TokenEntry] = ()
    ) -> None:
        """`own` are kept whatever the file says."""
        self._entries = tuple(entries)
        self._file = file
        self._own = tuple(own)
        self._seen = _state_of(file)

    def __bool__(self) -> bool:
        return self._file is not None or bool(self._entries or self._own)

    def with_entry(self, entry: TokenEntry) -> TokenBook:
        return TokenBook(self._entries, self._file, (*self._own, entry))

    def caller(self, authorization: str | None) -> Caller:
        """The caller behind an `authorization: Bearer TOKEN` header. Raises `NotAuthenticated`."""
        if not self:
            return LOCAL
        if authorization is None:
            raise NotAuthenticated(
                "no token: give QUIRE_TOKEN or --token-file, or the header `authorization: Bearer TOKEN`"
            )
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token or len(token) > MAX_TOKEN_CHARS:
            raise NotAuthenticated("the authorization header must read `Bearer TOKEN`")
        self._read_again()
        digest = digest_of(token.strip())
        found: TokenEntry | None = None
        for entry in (*self._own, *self._entries):
            # Every entry is compared, wherever the one that matches stands.
            if hmac.compare_digest(entry.digest, digest):
                found = entry
        if found is None:
            raise NotAuthenticated("this token is not known here")
        if found.until is not None and time.time() >= found.until:
            raise NotAuthenticated(f"this token of tenant {found.caller.tenant} has expired; ask for another")
        return found.caller

    def limits(self, tenant: str) -> TenantLimits:
        """What a tenant may have, as the last of its entries that says so has it."""
        self._read_again()
        told = [entry.limits for entry in (*self._own, *self._entries) if entry.caller.tenant == tenant]
        return next((limits for limits in reversed(told) if limits is not None), NO_LIMITS)

    def _read_again(self) -> None:
        """Where the file is another than before. One that cannot be read changes nothing, and is said once."""
        now = _state_of(self._file)
        if self._file is None or now is None or now == self._seen:
            return
        self._seen = now
        try:
            self._entries = tuple(read_entries(self._file))
        except ConfigError as error:
            log.error("%s; the tokens known before count on", error)
        else:
            log.info("%s was read again: %d tokens", self._file, len(self._entries))


def _state_of(file: Path | None) -> tuple[int, int, int] | None:
    """Another one for another content; None where there is no file."""
    try:
        found = os.stat(file) if file is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)


def digest_of(token: str) -> bytes:
    """Tokens are 256 random bits, so that a plain digest cannot be searched."""
    return hashlib.sha256(token.encode()).digest()


def new_token() -> str:
    return secrets.token_urlsafe(32)


def load_tokens(path: Path) -> TokenBook:
    """The book of a token file, which it follows. Raises `ConfigError` for one that lets nobody in."""
    entries = read_entries(path)
    if not entries:
        raise ConfigError(f"token file {path} has no token; `quire tenants add NAME --tokens {path}` writes one")
    return TokenBook(entries, path)


def read_entries(path: Path) -> list[TokenEntry]:
    """Of a token file: a JSON list of {"tenant", "sha256", "rights", "expires", "limits"}. Raises `ConfigError`."""
    return [_entry(path, item) for item in read_list(path)]


def read_list(path: Path) -> list[dict[str, Any]]:
    """What is written in a token file, unchecked. Raises `ConfigError`."""
    raw = read_private(path, "the token file")
    try:
        listed = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"token file {path} is no JSON: {error}; `quire certificates` writes a good one") from error
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise ConfigError(f"token file {path} holds no list of entries; `quire certificates` writes a good one")
    return listed


def _entry(path: Path, item: Mapping[str, Any]) -> TokenEntry:
    try:
        return _read_entry(item)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ConfigError(f"token file {path}: {error}; `quire tenants` writes a good one") from error


def _read_entry(item: Mapping[str, Any]) -> TokenEntry:
    digest = bytes.fromhex(str(item["sha256"]))
    if len(digest) != 32:
        raise ValueError(f"a sha256 of {len(digest)} bytes for tenant {item['tenant']}")
    rights = item.get("rights", ["inference"])
    if not isinstance(rights, list) or not set(rights) <= set(RIGHTS):
        raise ValueError(f"rights {rights!r}; there are {', '.join(RIGHTS)}")
    tenant = str(item["tenant"])
    if not tenant or len(tenant) > 128 or "/" in tenant:
        raise ValueError(f"tenant {tenant!r}: give 1 to 128 characters without a slash")
    expires = item.get("expires")
    until = None if expires is None else datetime.fromisoformat(expires).astimezone(UTC).timestamp()
    limits = TenantLimits.read(item["limits"]) if "limits" in item else None
    return TokenEntry(digest, Caller(tenant, frozenset(map(str, rights))), until, limits)


def make_tokens(path: Path, tenants: Sequence[tuple[str, Sequence[Right]]]) -> dict[str, str]:
    """Writes a token file with a new token for each tenant, and returns the tokens: they stand nowhere else."""
    made = [make_token(tenant, rights) for tenant, rights in tenants]
    write_list(path, [item for _, item in made])
    return {str(item["tenant"]): token for token, item in made}


def make_token(tenant: str, rights: Sequence[Right], expires: datetime | None = None) -> tuple[str, dict[str, Any]]:
    """A new token, and the entry that stands for it. Raises `ConfigError` for a tenant that cannot be."""
    token = new_token()
    item: dict[str, Any] = {"tenant": tenant, "sha256": digest_of(token).hex(), "rights": list(rights)}
    if expires is not None:
        item["expires"] = expires.isoformat(timespec="seconds")
    try:
        _read_entry(item)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return token, item


def write_list(path: Path, listed: Sequence[Mapping[str, Any]]) -> None:
    write_private(path, json.dumps(list(listed), indent=2).encode() + b"\n")


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
        f"listening on {host} lets other machines in, without {missing}; "
        f"give both (`quire certificates FOLDER` makes a first set), or listen on 127.0.0.1"
    )
