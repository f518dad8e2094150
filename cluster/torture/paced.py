"""A cluster that burns without Ray or a model: tokens are made up at a fixed pace, so that times mean something.

Scheduler, gateways and workers are processes, and who dies is started again at once, as Ray does it. Where it is given
networks each of them is in one of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from random import Random

import grpc

from cluster.bench.processes import NodeNetwork, Processes, ProcessMember
from cluster.client.connection import Tls
from cluster.errors import Unavailable
from cluster.lifecycle.ports import free_port
from cluster.links.security import TlsFiles
from cluster.sampling import SamplingParams
from cluster.settings import SchedulerSettings
from cluster.torture import made_up
from cluster.torture.asks import StreamAsk
from protos.quire.v1.admin_pb2_grpc import AdminServiceStub
from worker.model.checkpoint import find_folder

MODEL = "demo"
STEP_S = 0.02
MADE_UP = {"model": MODEL, "num_blocks": 4096, "max_batch": 256, "step_s": STEP_S}
LOOK_S = 0.05
WORKERS, GATEWAYS = ("worker-0", "worker-1"), ("gateway-0", "gateway-1")


class PacedHouse:
    """Use it in a `with`: at its end all processes are gone."""

    def __init__(
        self, say: Callable[[str], None], networks: Mapping[str, NodeNetwork] | None = None, tls: TlsFiles | None = None
    ) -> None:
        """`networks`: of each of the processes by name; they speak TLS then, and clients show a token."""
        self.left: list[str] = []
        self._say = say
        # The made-up tokens of a prefix are nobody's to reuse: blocks have no names.
        settings = SchedulerSettings(prefix_caching=False)
        self._processes = Processes(settings, serves=False, networks=networks, tls=tls)
        self._networks = networks or {}
        self.tls = None if tls is None else Tls(tls.authority, name=tls.name)
        self.token = None if tls is None else self._processes.inside.security.secret
        self.wanted = {"worker": len(WORKERS), "gateway": len(GATEWAYS), "scheduler": 1}
        doors = {name: f"{self._host(name)}:{free_port()}" for name in GATEWAYS}
        # The HTTP doors are read in plain; where there is TLS they are left out.
        ports = {name: free_port() if tls is None else 0 for name in GATEWAYS}
        self.gateways = list(doors.values())
        self.http = [f"{self._host(name)}:{port}" for name, port in ports.items() if port]
        folder = {MODEL: str(find_folder(MODEL))}

        def gateway(name: str) -> Callable[[], ProcessMember]:
            return lambda: self._processes.add_gateway(name, folder, doors, ports[name], self._node(name))

        def worker(name: str) -> Callable[[], ProcessMember]:
            return lambda: self._processes.add_made_up_worker(name, self._node(name), **MADE_UP)

        self._make: dict[str, Callable[[], ProcessMember]] = {
            "scheduler": lambda: self._processes.add_scheduler(self._node("scheduler")),
            **{name: gateway(name) for name in GATEWAYS},
            **{name: worker(name) for name in WORKERS},
        }
        self._admin = ""
        self._channel: grpc.Channel | None = None
        self._is_over = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def _node(self, name: str) -> str:
        return name if name in self._networks else "n0"

    def _host(self, name: str) -> str:
        return self._networks[name].host if name in self._networks else "127.0.0.1"

    def __enter__(self) -> PacedHouse:
        self._processes.__enter__()
        self._keeper.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._keeper.join()
        self._processes.__exit__(*error)

    def asks(self, seed: int, num: int) -> list[StreamAsk]:
        random, drawn = Random(f"asks/{seed}"), []
        for at in range(num):
            prompt = [random.randrange(300, 1500) for _ in range(random.randrange(1, 100))]
            num_sequences = 3 if at % 4 == 3 else 1
            params = SamplingParams(
                n=num_sequences, temperature=0.0, max_tokens=random.randrange(100, 400), ignore_eos=True
            )
            answer = made_up.answer(prompt, params.max_tokens or 0)
            drawn.append(StreamAsk("three" if num_sequences == 3 else "one", prompt, params, (answer,) * num_sequences))
        return drawn

    def pids(self, kind: str) -> list[int]:
        members = dict(self._processes.members)
        return [one.pid for name, one in members.items() if name.startswith(kind) and one.is_alive]

    def admin(self) -> AdminServiceStub:
        found = self._processes.members.get("scheduler")
        address = str(found.said.get("admin", "")) if found is not None else ""
        if not address:
            raise Unavailable("the scheduler has not said where its operators' door is")
        if address != self._admin:
            self._admin = address
            self._channel = self._processes.open_admin(address)
        assert self._channel is not None
        return AdminServiceStub(self._channel)

    def _keep(self) -> None:
        """Whoever has died is started again."""
        while not self._is_over.is_set():
            for name, make in self._make.items():
                member = self._processes.members.get(name)
                if member is None or not member.is_alive:
                    member = make()
                    threading.Thread(target=_listen, args=(member,), daemon=True).start()
            self._is_over.wait(LOOK_S)


def _listen(member: ProcessMember) -> None:
    """To what it says when it serves. It may be killed before that."""
    with suppress(RuntimeError, ValueError):
        member.told()
