"""What this user has up, as a file of the state folder: so that a later `down` finds it, also after a crash."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.private_files import read_private, write_private

if TYPE_CHECKING:
    import grpc

    from cluster.serving.admin_client import Admin


def state_folder() -> Path:
    """Where a user's clusters are noted: QUIRE_HOME, or the state folder of the system."""
    home = os.environ.get("QUIRE_HOME")
    if home:
        return Path(home)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "quire"


@dataclass(slots=True)
class Running:
    """A cluster that was started from here. `ray_pids`: of the Ray cluster, where it is ours."""

    ray_address: str
    ray_token: str
    ray_temp: str
    ray_pids: list[int]
    namespace: str
    gateway: str
    admin: str
    settings: dict[str, Any]
    # What our own commands show at the operators' door where it takes tokens.
    admin_token: str = ""
    # All of them; `gateway` is the first.
    gateways: list[str] = field(default_factory=list)
    # The process of `quire up`, until it is done.
    starter: int = 0
    # The process that serves the page.
    page_pid: int = 0

    def admin_channel(self) -> grpc.Channel:
        from cluster.serving.admin_channel import admin_channel

        authority, has_tls = self.settings["tls_authority"], bool(self.settings["tls_certificate"])
        return admin_channel(self.admin, self.admin_token, authority, tls=has_tls)

    def admin_client(self) -> Admin:
        from cluster.serving.admin_client import Admin

        return Admin(self.admin, self.admin_channel(), has_tls=bool(self.settings["tls_certificate"]))

    def save(self) -> None:
        """For its user only: what our commands show at the doors is in it."""
        write_private(state_folder() / "cluster.json", json.dumps(asdict(self), indent=1).encode())

    @staticmethod
    def load() -> Running | None:
        """Raises `ConfigError` for a note that somebody else could have written."""
        path = state_folder() / "cluster.json"
        if not path.exists():
            return None
        noted = read_private(path, "the note of your cluster")
        try:
            return Running(**json.loads(noted))
        except (ValueError, TypeError, RecursionError):
            return None

    @staticmethod
    def forget() -> None:
        (state_folder() / "cluster.json").unlink(missing_ok=True)
