"""Looks at this machine and at the cluster that its user has up, and says what is wrong and what to do.

`quire doctor` prints the findings; `write_bundle` packs them with logs and figures for somebody who helps, without
tokens or keys. It changes nothing and needs no cluster to run.
"""

from __future__ import annotations

import io
import json
import os
import platform
import shutil
import ssl
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cluster import __version__
from cluster.errors import QuireError
from cluster.lifecycle.ray_head import alive
from cluster.lifecycle.running import Running, state_folder
from cluster.sizes import counted, format_bytes
from cluster.watching.logs import log_files, read_lines, shown

MIN_SHM, MIN_MEMORY = 512 << 20, 2 << 30
SCRAPE_S = 3.0
SILENT_S = 2.0
CAUSES_SHOWN = 3
MAX_LOG_BYTES = 4 << 20
_SECRET = ("token", "secret", "key")

State = Literal["ok", "note", "wrong"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `wrong` findings say what to do."""

    state: State
    what: str
    detail: str


def examine() -> list[Finding]:
    """Everything, in the order in which a person would ask."""
    running = Running.load()
    found: list[Finding] = []
    for look in (_versions, _memory, _shared_memory, _accelerator):
        found += look()
    for look_at in (_cluster, _ports, _models, _certificates, _logs):
        found += look_at(running)
    return found


# -- this machine


def _versions() -> Iterator[Finding]:
    from cluster.bench.report import versions

    listed = ", ".join(f"{name} {version}" for name, version in versions().items())
    yield Finding("ok", "versions", f"quire {__version__}, {listed}, {platform.system()} {platform.machine()}")
    missing = [name for name in ("ray", "torch", "transformers") if name not in versions()]
    if missing:
        detail = (
            f"{', '.join(missing)} not installed: this machine can be a client; to serve: pip install 'quire[serve]'"
        )
        yield Finding("note", "serving side", detail)


def _memory() -> Iterator[Finding]:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free, total = (int(lines[name].split()[0]) << 10 for name in ("MemAvailable", "MemTotal"))
    except (OSError, ValueError, KeyError):
        return
    detail = f"{format_bytes(free)} of {format_bytes(total)} available"
    if free < MIN_MEMORY:
        yield Finding("wrong", "memory", f"{detail}; end other programs, or give a small --kv-memory and --host-memory")
    else:
        yield Finding("ok", "memory", detail)


def _shared_memory() -> Iterator[Finding]:
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        yield Finding("note", "shared memory", "/dev/shm is not there; Ray then keeps its objects on disk")
        return
    detail = f"{format_bytes(usage.free)} of {format_bytes(usage.total)} free in /dev/shm"
    if usage.free < MIN_SHM:
        yield Finding(
            "wrong", "shared memory", f"{detail}; in a container give --shm-size=2g, or remove what lies there"
        )
    else:
        yield Finding("ok", "shared memory", detail)


def _accelerator() -> Iterator[Finding]:
    devices = sorted(Path("/dev").glob("nvidia[0-9]*"))
    detail = f"{len(devices)} NVIDIA devices" if devices else "no NVIDIA device; workers run on the CPU (--device cpu)"
    yield Finding("ok", "accelerators", detail)


# -- the cluster


def _cluster(running: Running | None) -> Iterator[Finding]:
    if running is None:
        yield Finding("note", "cluster", f"none is noted in {state_folder()}; start one with `quire up`")
        return
    if running.ray_pids:
        dead = [pid for pid in running.ray_pids if not alive(pid)]
        if dead:
            detail = f"{len(dead)} of {len(running.ray_pids)} processes are gone; `quire down`, then `quire up`"
            yield Finding("wrong", "ray", detail)
        else:
            yield Finding("ok", "ray", f"{len(running.ray_pids)} processes live, head at {running.ray_address}")
    else:
        yield Finding("note", "ray", f"a cluster that was there before us, at {running.ray_address}")
    if running.admin:
        yield from _scheduler(running)
    else:
        yield Finding("note", "scheduler", "the cluster is still coming up, or was interrupted; `quire down` clears up")


def _scheduler(running: Running) -> Iterator[Finding]:
    from cluster.serving.admin_client import status_of

    try:
        found = status_of(running.admin_client(), most=1)
    except QuireError as error:
        # Without its advice, which may be to come here.
        problem = str(error).partition("; ")[0]
        yield Finding("wrong", "scheduler", f"{problem}; `quire logs --causes` says why, `quire down` clears up")
        return
    cluster = found["cluster"]
    detail = f"epoch {cluster['epoch']}, up {cluster['uptime_s']:.0f} s, {cluster['num_running']} run, "
    yield Finding("ok", "scheduler", f"{detail}{cluster['num_waiting']} wait")
    yield _members("gateways", [(one["name"], one["connected"]) for one in cluster["gateways"]])
    workers = found["workers"]
    silent = [one["name"] for one in workers["workers"] if one["silent_s"] > SILENT_S]
    listed = [(one["name"], one["name"] not in silent) for one in workers["workers"]]
    yield _members("workers", listed + [(one["name"], False) for one in workers["missing"]])


def _members(what: str, listed: list[tuple[str, bool]]) -> Finding:
    """Whether all of a kind are there that are to be."""
    missing = [name for name, is_there in listed if not is_there]
    if missing:
        detail = f"{len(listed) - len(missing)} of {len(listed)} serve; {', '.join(missing)} missing or silent"
        return Finding("wrong", what, f"{detail}: Ray starts it again; `quire logs --process {missing[0]}` says why")
    if not listed:
        return Finding("wrong", what, "none has joined; `quire logs --causes` says why")
    return Finding("ok", what, f"{len(listed)} serve: {', '.join(name for name, _ in listed)}")


def _ports(running: Running | None) -> Iterator[Finding]:
    from cluster.errors import ConfigError
    from cluster.lifecycle.cluster_settings import ClusterSettings
    from cluster.lifecycle.ports import check_port

    if running is not None:
        settings = running.settings
        doors = {"gateways": " ".join(running.gateways)}
        if first := settings.get("http_port"):
            doors["HTTP"] = " ".join(f"{settings.get('host')}:{first + n}" for n in range(len(running.gateways)))
        doors["admin"] = running.admin
        doors["metrics"] = f"{settings.get('host')}:{settings.get('metrics_port')}"
        yield Finding("ok", "ports", ", ".join(f"{name} {address}" for name, address in doors.items()))
        text = metrics_text(running)
        if text:
            yield Finding("ok", "metrics", f"{text.count(chr(10)):,} lines at {metrics_url(settings)}")
        else:
            remedy = "`quire logs --causes --process scheduler` says why"
            yield Finding("wrong", "metrics", f"{metrics_url(settings)} does not answer; {remedy}")
        return
    plain = ClusterSettings()
    for name in ("port", "admin_port", "metrics_port"):
        try:
            check_port(plain.host, getattr(plain, name), name)
        except ConfigError as error:
            yield Finding("wrong", name, str(error))
        else:
            yield Finding("ok", name, f"{getattr(plain, name)} is free")


def _models(running: Running | None) -> Iterator[Finding]:
    from cluster.cli.size import read_config
    from cluster.lifecycle.served import read_models

    for model in read_models(running.settings["model"] if running is not None else ("demo",)):
        try:
            config = read_config(model.path)
        except (QuireError, ModuleNotFoundError) as error:
            yield Finding("note", f"model {model.name}", f"its configuration is not readable here: {error}")
        else:
            yield Finding("ok", f"model {model.name}", f"{config.get('architectures', ['?'])[0]}")


def _certificates(running: Running | None) -> Iterator[Finding]:
    settings = {} if running is None else running.settings
    paths = [
        Path(value) for name, value in settings.items() if name.startswith("tls") and isinstance(value, str) and value
    ]
    if not paths:
        yield Finding("note", "certificates", "none in use: the doors listen without TLS, on loopback only")
        return
    from cryptography import x509

    for path in paths:
        try:
            raw = path.read_bytes()
            if b"BEGIN CERTIFICATE" not in raw:
                continue
            left_s = x509.load_pem_x509_certificate(raw).not_valid_after_utc.timestamp() - time.time()
        except (OSError, ValueError) as error:
            yield Finding("wrong", "certificate", f"{path}: {error}; `quire certificates FOLDER` makes a set")
            continue
        detail = f"{path} holds for {left_s / 86_400:.0f} days"
        if left_s > 14 * 86_400:
            yield Finding("ok", "certificate", detail)
        else:
            yield Finding("wrong", "certificate", f"{detail}; {_renewal(path, settings)}")


def _renewal(path: Path, settings: dict[str, Any]) -> str:
    if str(path) == settings["tls_authority"]:
        return "`quire certificates FOLDER` makes a new set, which clients need too; then `quire down` and `quire up`"
    return f"`quire certificates renew {path.parent}` makes new ones while the doors serve"


def _logs(running: Running | None) -> Iterator[Finding]:
    from cluster.cli.logs import log_folder

    folder = log_folder()
    files = log_files(folder)
    level = running.settings.get("log_level", "info") if running is not None else "info"
    raising = "more: --log-level debug or QUIRE_LOG_LEVEL=debug at `quire up`"
    yield Finding("ok", "logs", f"{counted(len(files), 'file')} of JSON lines in {folder}, level {level}; {raising}")
    if running is not None and running.ray_temp:
        yield Finding("ok", "ray's logs", f"{running.ray_temp}/session_latest/logs")
    for line in read_lines(folder, level="error")[-CAUSES_SHOWN:] if files else ():
        yield Finding("note", "latest cause", shown(line))


def metrics_url(settings: dict[str, Any]) -> str:
    scheme = "https" if settings.get("tls_certificate") else "http"
    return f"{scheme}://{settings.get('host')}:{settings.get('metrics_port')}/metrics"


def metrics_text(running: Running) -> str:
    """What the metrics port says now; empty if nobody answers."""
    url, authority = metrics_url(running.settings), running.settings.get("tls_authority") or None
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {running.admin_token}"})
    try:
        context = ssl.create_default_context(cafile=authority) if url.startswith("https") else None
        with urllib.request.urlopen(request, timeout=SCRAPE_S, context=context) as answer:
            return str(answer.read().decode())
    except (OSError, urllib.error.URLError, ValueError):
        return ""


# -- the bundle


def write_bundle(path: Path, findings: list[Finding]) -> list[str]:
    """A tar of findings, settings, figures, state and logs; returns the names in it. No token or key is in it."""
    from cluster.cli.logs import log_folder

    running = Running.load()
    parts: dict[str, Callable[[], str]] = {
        "findings.json": lambda: json.dumps([asdict(one) for one in findings], indent=1),
        "environment.json": lambda: json.dumps(_without_secrets(_environment()), indent=1),
    }
    if running is not None:
        known = running
        parts["cluster.json"] = lambda: json.dumps(_without_secrets(asdict(known)), indent=1)
        parts["metrics.txt"] = lambda: metrics_text(known)
        parts["status.json"] = lambda: _status(known)
    for file in log_files(log_folder()):
        parts[f"logs/{file.name}"] = lambda file=file: _tail(file)  # type: ignore[misc]
    names = []
    with tarfile.open(path, "w:gz") as bundle:
        for name, make in parts.items():
            raw = make().encode()
            entry = tarfile.TarInfo(f"quire-bundle/{name}")
            entry.size, entry.mtime = len(raw), int(time.time())
            bundle.addfile(entry, io.BytesIO(raw))
            names.append(name)
    return names


def _environment() -> dict[str, Any]:
    return {name: value for name, value in os.environ.items() if name.startswith(("QUIRE_", "RAY_", "OMP_", "CUDA_"))}


def _without_secrets(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: "(left out)" if value and any(part in name.lower() for part in _SECRET) else value
        for name, value in values.items()
    }


def _status(running: Running) -> str:
    from cluster.serving.admin_client import status_of

    try:
        return json.dumps(status_of(running.admin_client()), indent=1)
    except QuireError as error:
        return json.dumps({"error": str(error)})


def _tail(file: Path) -> str:
    with file.open("rb") as read:
        read.seek(max(0, file.stat().st_size - MAX_LOG_BYTES))
        return read.read().decode(errors="replace")
