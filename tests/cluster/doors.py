"""A scheduler's process without workers, on a loop of its own: for what commands and scrapers ask of its doors."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from cluster.links.security import ClusterSecurity
from cluster.serving.admin import Wanted
from cluster.serving.inside import Inside
from cluster.serving.public_port import PublicPort
from cluster.serving.scheduler_server import Addresses, Doors, serve_scheduler
from cluster.settings import SchedulerSettings


@contextmanager
def serving(admin: PublicPort, wanted: Wanted | None = None) -> Iterator[Addresses]:
    """Its addresses, while it serves."""
    loop, ready, told = asyncio.new_event_loop(), threading.Event(), list[Addresses]()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def publish(addresses: Addresses) -> None:
        told.append(addresses)
        ready.set()

    inside = Inside("127.0.0.1", ClusterSecurity(secrets.token_hex(16)))
    work = serve_scheduler(
        SchedulerSettings(),
        1,
        doors=Doors(inside, admin, replace(admin, port=0)),
        hash_key=secrets.token_bytes(32),
        silence_s=2.0,
        journal=None,
        on_address=publish,
        wanted=wanted,
    )
    task = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        while not ready.wait(0.05):
            if task.done():
                task.result()
        yield told[0]
    finally:
        task.cancel()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
