"""Brings a cluster up on Ray, and takes it down to the last process.

Used by the command line only. It starts a Ray cluster of its own unless it is given one, creates the detached actors in
their placement groups, and waits for each with a deadline; whatever cannot be had is named in one line and everything
that was started is taken away again. What runs where is kept in a file of the state folder, so that a later `down`
finds it, also after a crash.
"""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from cluster.errors import ConfigError, Unavailable
from cluster.lifecycle import leave_ray, ray_head
from cluster.lifecycle.bring_up import BringUp
from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.page_process import end_page
from cluster.lifecycle.ports import check_ports, free_port, is_free, with_ports
from cluster.lifecycle.preflight import check_early, leave_room, num_cpus
from cluster.lifecycle.ray_connection import NAMESPACE, check_ray_answers, quiet_ray
from cluster.lifecycle.running import Running, state_folder
from cluster.private_files import check_file, check_folder
from cluster.serving.public_port import EVERYWHERE
from cluster.watching.tracing import check_trace

# How long what was ended may take to be gone.
GONE_S = 10.0

Say = Callable[[str], None]


# -- up


def up(settings: ClusterSettings, say: Say) -> Running:
    """Starts everything and returns once a gateway serves. On any failure nothing is left behind."""
    check_folder(state_folder(), "the state folder", "give another with QUIRE_HOME")
    _refuse_second(say)
    check_folder(Path(settings.log_dir or state_folder() / "logs"), "the log folder", "give another --log-dir")
    if settings.journal:
        check_file(Path(settings.journal), "the journal", "give another --journal")
    door = settings.gateway_door(settings.port)
    door.check()
    if door.tls is not None and settings.tls_authority and settings.host not in EVERYWHERE:
        door.tls.check_client(settings.host, Path(settings.tls_authority))
    check_early(settings)
    if settings.address:
        check_ray_answers(settings.address, os.environ.get("RAY_AUTH_TOKEN", ""))
    check_ports(settings)
    check_trace(settings.trace)
    settings = replace(settings, log_dir=settings.log_dir or str(state_folder() / "logs"))
    settings = leave_room(with_ports(settings))
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
            say("what was started is taken away")
            down(say)
        raise
    running.starter = 0
    running.save()
    say(
        f"ready after {time.monotonic() - began:.1f} s: {'gateways' if len(running.gateways) > 1 else 'gateway'} "
        f"{', '.join(running.gateways)}, {_http_doors(settings)}admin {running.admin}, "
        f"metrics {'https' if settings.tls_certificate else 'http'}://{settings.host}:{settings.metrics_port}/metrics"
    )
    return running


def _http_doors(settings: ClusterSettings) -> str:
    scheme = "https" if settings.tls_certificate else "http"
    doors = [f"{scheme}://{settings.host}:{port}/v1" for port in settings.http_ports().values() if port]
    return f"HTTP {', '.join(doors)}, " if doors else ""


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
    """Nobody stops the cleaning, which has deadlines of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.signal(one, signal.SIG_IGN) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


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
    with _undisturbed():
        left: list[str] = end_page(running)
        if running.ray_temp:
            left += [f"process {pid} ({ray_head.name_of(pid)})" for pid in ray_head.end(running.ray_temp)]
        else:
            left += _leave_ray(running, say)
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
    if not running.gateway:
        return []
    addresses = [*running.gateways, running.admin, f":{running.settings.get('metrics_port')}"]
    first_http = int(running.settings.get("http_port") or 0)
    ports = [int(address.rpartition(":")[2]) for address in addresses]
    ports += [first_http + number for number in range(len(running.gateways))] if first_http else []
    while (taken := [port for port in ports if not is_free(host, port)]) and time.monotonic() < until:
        time.sleep(0.05)
    return taken
