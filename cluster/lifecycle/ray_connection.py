"""Connects this process to a Ray cluster, and says in one line why it cannot."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.errors import AccessDenied, ConfigError, Unavailable
from cluster.lifecycle import ray_head
from cluster.lifecycle.running import Running

NAMESPACE = "quire"
ANSWER_S = 3.0
MIN_RAY = (2, 55)
NODES = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"


def check_ray_answers(address: str, token: str) -> None:
    """Ray itself tries for minutes where nobody listens, and says no more of a wrong token. Raises `Unavailable` or
    `AccessDenied`."""
    host, colon, port = address.rpartition(":")
    if not colon:
        return  # "auto": Ray knows where
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, ValueError) as error:
        detail = f"no Ray cluster answers at {address}: {error}; start one with `ray start --head`, or give its address"
        raise Unavailable(detail) from error
    _check_token(address, token or _token_of_user())


def _check_token(address: str, token: str) -> None:
    """Asks the head for its nodes, as Ray's own processes do, without Ray, which would take seconds to import."""
    import grpc

    shown = (("authorization", f"Bearer {token}"),) if token else None
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(NODES, None, None)(b"", timeout=ANSWER_S, metadata=shown)
        except grpc.RpcError as error:
            # Whatever else is the matter, Ray says it when it is asked in earnest.
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                what = "the token that is given is another one" if token else "none is given"
                raise AccessDenied(
                    f"Ray at {address} wants its token, and {what}; give that of its head in RAY_AUTH_TOKEN, or a "
                    "file with it in RAY_AUTH_TOKEN_PATH"
                ) from error


def _token_of_user() -> str:
    """Where Ray looks for it as well."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"]
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    try:
        return Path(path).read_text().strip()
    except (OSError, ValueError):
        return ""


def connect_ray(address: str, token: str) -> None:
    """Connects this process to a Ray cluster; a ConfigError says what to do when it cannot."""
    check_ray_answers(address, token)
    os.environ.update(ray_head.token_variables(token))
    import ray

    # Ray keeps the token that it read first, which may be that of another cluster.
    core: Any = ray._raylet
    core.Config.initialize("")
    core.AuthenticationTokenLoader.instance().reset_cache()

    version = tuple(int(part) for part in ray.__version__.split(".")[:2])
    if version < MIN_RAY:
        raise ConfigError(f"Ray is {ray.__version__}; Quire needs {'.'.join(map(str, MIN_RAY))} or newer")
    local = address.startswith("127.")
    try:
        with _without_stderr():
            ray.init(
                address=address,
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level="ERROR",
                _node_ip_address="127.0.0.1" if local else None,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        line = " ".join(str(error).split())[:300]
        if "mismatch" in line:
            raise ConfigError(
                f"Ray at {address} is of another version: {line}; install the same on all machines"
            ) from error
        raise Unavailable(
            f"no Ray cluster answers at {address}: {line}; start one with `ray start --head`, or give its token in "
            "RAY_AUTH_TOKEN"
        ) from error


@contextmanager
def _without_stderr() -> Iterator[None]:
    """What goes wrong is said by us in one line; Ray's C++ would say it once a second, past Python's own streams."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def quiet_ray(running: Running) -> Iterator[None]:
    connect_ray(running.ray_address, running.ray_token)
    import ray

    try:
        yield
    finally:
        ray.shutdown()
