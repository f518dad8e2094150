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
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import ConfigError, Unavailable
from cluster.lifecycle import leave_ray, ray_head
from cluster.lifecycle.bring_up import BringUp
from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.host_memory import create_host_pools
from cluster.lifecycle.placing import CENTRE, START_S, create_worker, wait_until_joined, wait_until_ready, worker_name
from cluster.lifecycle.preflight import check_early, num_cpus, preflight
from cluster.watching.tracing import check_trace

if TYPE_CHECKING:
    import grpc

NAMESPACE = "quire"
ANSWER_S = 3.0
MIN_RAY = (2, 55)
# How long what was ended may take to be gone.
GONE_S = 10.0

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
    # The process of `quire up`, until it is done.
    starter: int = 0

    def admin_channel(self) -> grpc.Channel:
        from cluster.serving.admin_channel import admin_channel

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


def import_ray() -> None:
    """What `create` needs, ahead of time."""
    import ray.util.placement_group
    import ray.util.scheduling_strategies  # noqa: F401

    import cluster.lifecycle.actors  # noqa: F401


def check_ray_answers(address: str) -> None:
    """Ray itself tries for minutes where nobody listens. Raises `Unavailable`."""
    host, colon, port = address.rpartition(":")
    if not colon:
        return  # "auto": Ray knows where
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, ValueError) as error:
        detail = f"no Ray cluster answers at {address}: {error}; start one with `ray start --head`, or give its address"
        raise Unavailable(detail) from error


def connect_ray(address: str, token: str) -> None:
    """Connects this process to a Ray cluster; a ConfigError says what to do when it cannot."""
    check_ray_answers(address)
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


# -- up


def up(settings: ClusterSettings, say: Say) -> Running:
    """Starts everything and returns once a gateway serves. On any failure nothing is left behind."""
    _refuse_second(say)
    settings.gateway_door(settings.port).check()
    check_early(settings)
    if settings.address:
        check_ray_answers(settings.address)
    check_port(settings.host, settings.port, "port")
    check_port(settings.host, settings.admin_port, "admin_port")
    check_port(settings.host, settings.metrics_port, "metrics_port")
    check_trace(settings.trace)
    settings = replace(settings, log_dir=settings.log_dir or str(state_folder() / "logs"))
    # Ports that are left to us are chosen once: an actor that is started again must come up where it was.
    settings = replace(settings, port=settings.port or free_port(), admin_port=settings.admin_port or free_port())
    settings = replace(settings, metrics_port=settings.metrics_port or free_port())
    began = time.monotonic()
    folder, token = ("", os.environ.get("RAY_AUTH_TOKEN", ""))
    if not settings.address:
        folder, token = ray_head.new_folder(), secrets.token_hex(32)
    running = Running(settings.address, token, folder, [], NAMESPACE, "", "", settings.as_dict(), starter=os.getpid())
    # Noted before anything runs, so that whatever happens now, `down` knows what to look for.
    running.save()
    try:
        with BringUp(settings, token) as bring_up:
            if not settings.address:
                _start_head(running)
                say(f"{running.ray_address}: Ray serves after {time.monotonic() - began:.1f} s")
            told = bring_up.run(asdict(running), lambda line: say(f"{time.monotonic() - began:5.1f} s  {line}"))
            running = Running(**told)
    except BaseException:
        with _undisturbed():
            down(lambda line: None)
        raise
    running.starter = 0
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


def _refuse_second(say: Say) -> None:
    """One cluster for each user; what a crash left of one is taken away first."""
    known = Running.load()
    if known is None:
        return
    if known.starter and ray_head.alive(known.starter) and known.starter != os.getpid():
        raise ConfigError(f"`quire up` is at work already, as process {known.starter}; wait for it or end it")
    if not known.ray_temp or ray_head.serves(known.ray_temp):
        where = f", its gateway at {known.gateway}" if known.gateway else ""
        raise ConfigError(f"a cluster runs already{where}; `quire down` ends it")
    say("a cluster of yours had crashed; what it left is taken away first")
    down(say)


def _start_head(running: Running) -> None:
    head = ray_head.HeadStart(running.ray_temp, free_port(), num_cpus(), running.ray_token)
    try:
        head.wait()
    finally:
        head.abandon()
    running.ray_address, running.ray_pids = head.address, ray_head.processes_of(running.ray_temp)
    running.save()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C does not stop the cleaning."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def create(settings: ClusterSettings, running: Running, say: Say) -> None:
    """All actors, on the Ray that this process is connected to; what they are reached by goes into `running`. Called by
    the child of `lifecycle/bring_up.py`."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from cluster.lifecycle.actors import GatewayActor, ScalerActor, SchedulerActor
    from cluster.lifecycle.ray_state import RayState
    from cluster.serving.inside import prepare
    from protos.quire.v1.admin_pb2_grpc import AdminServiceStub

    settings = replace(settings, device=_device(settings.device))
    running.settings = settings.as_dict()
    preflight(settings)
    # A Ray of our own is never joined by other machines.
    running.admin_token = prepare(RayState(running.namespace), is_one_machine=not settings.address)
    # The doors are where `up` was typed: their files are there, and their addresses are known and stay. Not `soft`, for
    # then Ray puts a detached actor that books nothing on any node.
    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    options = {**CENTRE, "scheduling_strategy": here}
    scheduler = ray.remote(SchedulerActor).options(name="scheduler", **options).remote(settings, running.namespace)
    workers = [
        create_worker(settings, running.namespace, model, number)
        for model in settings.model
        for number in range(settings.workers)
    ]
    # Only the first has a port that was asked for; all keep theirs, so that one that dies comes up where it was.
    ports = [settings.port, *(free_port() for _ in range(1, settings.gateways))]
    gateways = [
        ray.remote(GatewayActor)
        .options(name=f"gateway-{number}", **options)
        .remote(settings, running.namespace, f"gateway-{number}", port)
        for number, port in enumerate(ports)
    ]
    running.admin = wait_until_ready(scheduler, "the scheduler")
    say("the scheduler serves")
    for number, worker in enumerate(workers):
        wait_until_ready(worker, f"worker {number}")
    with running.admin_channel() as channel:
        names = [worker_name(model, number) for model in settings.model for number in range(settings.workers)]
        wait_until_joined(AdminServiceStub(channel), names)
    report: list[str] = ray.get(workers[0].report.remote(), timeout=START_S)
    for line in report:
        say(f"worker-0 {line}")
    say(f"{len(workers)} workers are ready")
    create_host_pools(settings, running.namespace, workers, say)
    addresses = [wait_until_ready(gateway, f"gateway {number}") for number, gateway in enumerate(gateways)]
    running.gateway, running.gateways = addresses[0], addresses
    say(f"{len(gateways)} gateways serve")
    if settings.autoscale:
        scaler = ray.remote(ScalerActor).options(name="scaler", **options)
        say(f"autoscaling: {wait_until_ready(scaler.remote(settings, running.namespace, running.admin), 'the scaler')}")


# -- down


def down(say: Say, grace_s: float = 0.0) -> list[str]:
    """Ends what `up` started and says what is left: an empty list is the proof that nothing is.

    Requests that run have `grace_s` to end first.
    """
    running = Running.load()
    if running is None:
        say("no cluster of this user is noted: nothing to end")
        return []
    if running.admin and grace_s > 0:
        with running.admin_channel() as channel:
            leave_ray.let_finish(channel, grace_s, say)
    left: list[str] = []
    if running.ray_temp:
        left = [f"process {pid} ({ray_head.name_of(pid)})" for pid in ray_head.end(running.ray_temp)]
    else:
        left = _leave_ray(running, say)
    left += [f"port {port}" for port in _ports_taken(running)]
    if not left:
        Running.forget()
    say("down: nothing is left" if not left else f"left behind: {', '.join(left)}")
    return left


def _leave_ray(running: Running, say: Say) -> list[str]:
    """Ends what is ours on a Ray cluster that somebody else started; what is left of it there."""
    try:
        with quiet_ray(running):
            return leave_ray.remove_all(running.namespace, GONE_S)
    except Unavailable as error:
        say(f"{error}; what ran there has ended with it")
        return []


def _ports_taken(running: Running) -> list[int]:
    """Our doors that are still held on this machine, a moment after their processes ended."""
    host, until = str(running.settings.get("host", "127.0.0.1")), time.monotonic() + GONE_S
    ports = (
        [int(running.settings.get(name) or 0) for name in ("port", "admin_port", "metrics_port")]
        if running.gateway
        else []
    )
    while (taken := [port for port in ports if not _is_free(host, port)]) and time.monotonic() < until:
        time.sleep(0.05)
    return taken


def _is_free(host: str, port: int) -> bool:
    try:
        check_port(host, port, "port")
    except ConfigError:
        return False
    return True
