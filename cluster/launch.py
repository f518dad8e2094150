"""Brings a cluster up on Ray, and takes it down to the last process.

Used by the command line only. It starts a Ray cluster of its own unless it is given one, creates the detached actors in
their placement groups, and waits for each with a deadline; whatever cannot be had is named in one line and everything
that was started is taken away again. What runs where is kept in a file of the state folder, so that a later `down`
finds it, also after a crash.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.cluster_settings import ClusterSettings
from cluster.errors import ConfigError, Unavailable
from cluster.placing import CENTRE, START_S, create_host_pools, create_worker, wait_until_ready
from cluster.preflight import preflight
from cluster.tracing import check_trace

if TYPE_CHECKING:
    import grpc

NAMESPACE = "quire"
MIN_RAY = (2, 55)

Say = Callable[[str], None]


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

    def admin_channel(self) -> grpc.Channel:
        from cluster.admin_channel import admin_channel

        authority, has_tls = self.settings["tls_authority"], bool(self.settings["tls_certificate"])
        return admin_channel(self.admin, self.admin_token, authority, tls=has_tls)

    def save(self) -> None:
        folder = state_folder()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "cluster.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(self), indent=1))

    @staticmethod
    def load() -> Running | None:
        try:
            return Running(**json.loads((state_folder() / "cluster.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    @staticmethod
    def forget() -> None:
        (state_folder() / "cluster.json").unlink(missing_ok=True)


# -- Ray


def start_ray(num_cpus: int, say: Say) -> Running:
    """A Ray head of our own on loopback, with a token of its own. Its processes are noted by id."""
    token = secrets.token_hex(32)
    folder = state_folder()
    folder.mkdir(parents=True, exist_ok=True)
    # Ray puts sockets into this folder, whose path must be short.
    temp = f"/tmp/quire-{os.getuid()}-{secrets.token_hex(3)}"
    port = free_port()
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
        f"--num-cpus={num_cpus}",
        f"--temp-dir={temp}",
        "--include-dashboard=false",
        "--disable-usage-stats",
    ]
    before = set(_pids_with(temp))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=START_S, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise Unavailable(f"ray start failed: {lines[-1]}")
    pids = [pid for pid in _pids_with(temp) if pid not in before]
    say(f"ray: head on 127.0.0.1:{port}, {num_cpus} CPUs booked, {len(pids)} processes")
    return Running(f"127.0.0.1:{port}", token, temp, pids, NAMESPACE, "", "", {})


def connect_ray(address: str, token: str) -> None:
    """Connects this process to a Ray cluster; a ConfigError says what to do when it cannot."""
    if token:
        # Ray reads its token when it is imported.
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", token
    import ray

    version = tuple(int(part) for part in ray.__version__.split(".")[:2])
    if version < MIN_RAY:
        raise ConfigError(f"Ray is {ray.__version__}; Quire needs {'.'.join(map(str, MIN_RAY))} or newer")
    local = address.startswith("127.")
    try:
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level="ERROR",
            _node_ip_address="127.0.0.1" if local else None,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        line = " ".join(str(error).split())[:300]
        raise Unavailable(f"no Ray cluster answers at {address}: {line}; start one with `ray start --head`") from error


@contextmanager
def quiet_ray(running: Running) -> Iterator[None]:
    connect_ray(running.ray_address, running.ray_token)
    import ray

    try:
        yield
    finally:
        ray.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port(host: str, port: int, setting: str) -> None:
    if not port:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            detail = f"port {port} on {host} is taken; free it, or give another with --{setting.replace('_', '-')}"
            raise ConfigError(detail) from error


def _pids_with(text: str) -> list[int]:
    """Processes whose command line holds this text."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if text.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


# -- up


def up(settings: ClusterSettings, say: Say) -> Running:
    """Starts everything and returns once a gateway serves. On any failure nothing is left behind."""
    known = Running.load()
    if known is not None and (not known.ray_pids or any(process_alive(pid) for pid in known.ray_pids)):
        raise ConfigError(f"a cluster runs already, its gateway at {known.gateway}; `quire down` ends it")
    settings.gateway_door(settings.port).check()
    check_port(settings.host, settings.port, "port")
    check_port(settings.host, settings.admin_port, "admin_port")
    check_port(settings.host, settings.metrics_port, "metrics_port")
    check_trace(settings.trace)
    settings = replace(settings, log_dir=settings.log_dir or str(state_folder() / "logs"))
    # Ports that are left to us are chosen once: an actor that is started again must come up where it was.
    settings = replace(settings, port=settings.port or free_port(), admin_port=settings.admin_port or free_port())
    settings = replace(settings, metrics_port=settings.metrics_port or free_port())
    began = time.monotonic()
    num_ranks = settings.workers * len(settings.model) * settings.tp
    if settings.address:
        running = Running(settings.address, os.environ.get("RAY_AUTH_TOKEN", ""), "", [], NAMESPACE, "", "", {})
    else:
        running = start_ray(max(2, int(num_ranks * settings.cpus_per_worker) + 1), say)
    running.settings = settings.as_dict()
    running.save()
    try:
        with quiet_ray(running):
            settings = replace(settings, device=_device(settings.device))
            running.settings = settings.as_dict()
            preflight(settings)
            _create(settings, running, say)
    except BaseException:
        down(lambda line: None)
        raise
    running.save()
    say(
        f"ready after {time.monotonic() - began:.1f} s: gateway {running.gateway}, admin {running.admin}, "
        f"metrics http://{settings.host}:{settings.metrics_port}/metrics"
    )
    return running


def _device(device: str) -> str:
    """GPUs where Ray has some and nothing else was asked for: actors see only those that were booked for them."""
    import ray

    if device != "auto":
        return device
    return "cuda" if ray.cluster_resources().get("GPU", 0.0) >= 1 else "cpu"


def _create(settings: ClusterSettings, running: Running, say: Say) -> None:
    import ray

    from cluster.actors import GatewayActor, SchedulerActor
    from cluster.inside import prepare
    from cluster.ray_state import RayState

    began = time.monotonic()
    # A Ray of our own is never joined by other machines.
    running.admin_token = prepare(RayState(running.namespace), is_one_machine=not settings.address)
    scheduler = ray.remote(SchedulerActor).options(name="scheduler", **CENTRE).remote(settings, running.namespace)
    workers = [
        create_worker(settings, running.namespace, model, number)
        for model in settings.model
        for number in range(settings.workers)
    ]
    # Only the first has a port that was asked for; all keep theirs, so that one that dies comes up where it was.
    ports = [settings.port, *(free_port() for _ in range(1, settings.gateways))]
    gateways = [
        ray.remote(GatewayActor)
        .options(name=f"gateway-{number}", **CENTRE)
        .remote(settings, running.namespace, f"gateway-{number}", port)
        for number, port in enumerate(ports)
    ]
    running.admin = wait_until_ready(scheduler, "the scheduler")
    say(f"scheduler: {time.monotonic() - began:.1f} s")
    for number, worker in enumerate(workers):
        wait_until_ready(worker, f"worker {number}")
    report: list[str] = ray.get(workers[0].report.remote(), timeout=START_S)
    for line in report:
        say(f"worker-0 {line}")
    say(f"{len(workers)} workers: {time.monotonic() - began:.1f} s")
    create_host_pools(settings, running.namespace, workers, say)
    addresses = [wait_until_ready(gateway, f"gateway {number}") for number, gateway in enumerate(gateways)]
    running.gateway, running.gateways = addresses[0], addresses
    say(f"{len(gateways)} gateways: {time.monotonic() - began:.1f} s")


# -- down


def down(say: Say) -> list[str]:
    """Ends what `up` started and says what is left: an empty list is the proof that nothing is."""
    running = Running.load()
    if running is None:
        say("no cluster of this user is noted: nothing to end")
        return []
    if running.ray_pids:
        _end(running.ray_pids + _pids_with(running.ray_temp))
        _end(_pids_with(running.ray_temp))
        if running.ray_temp.startswith("/tmp/quire-"):
            shutil.rmtree(running.ray_temp, ignore_errors=True)
    else:
        with quiet_ray(running):
            _remove_actors(running)
    Running.forget()
    left = [f"process {pid}" for pid in _pids_with(running.ray_temp)] if running.ray_temp else []
    say("down: nothing is left" if not left else f"left behind: {', '.join(left)}")
    return left


def _remove_actors(running: Running) -> None:
    import ray
    from ray.util import list_named_actors, remove_placement_group
    from ray.util.placement_group import get_placement_group

    from cluster.ray_state import RayState

    for name in [entry["name"] for entry in list_named_actors(all_namespaces=True) if entry["namespace"] == NAMESPACE]:
        ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)
        try:
            remove_placement_group(get_placement_group(name))
        except ValueError:
            continue
    RayState(running.namespace).remove_all()


def process_alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def _end(pids: list[int]) -> None:
    """Asks these processes to end, and makes them."""
    for number, patience_s in ((15, 5.0), (9, 5.0)):
        for pid in pids:
            if process_alive(pid):
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
        until = time.monotonic() + patience_s
        while time.monotonic() < until and any(map(process_alive, pids)):
            time.sleep(0.05)
