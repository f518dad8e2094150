"""Network namespaces whose cables all end in one switch of ours: any two of them can be cut off from each other, in one
direction too, or be far away. Needs root and iproute2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from cluster.bench.processes import NodeNetwork

HERE = "here"
"""This process's own end."""
# Frames go out as they are: no end leaves checksums, or the cutting of long ones, to a card.
_PLAIN = """
import array, fcntl, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    for command in (0x17, 0x19, 0x1f, 0x24):
        value = array.array("I", [command, 0])
        request = struct.pack("16sP", sys.argv[1].encode(), value.buffer_info()[0])
        try:
            fcntl.ioctl(any_socket, 0x8946, request)
        except OSError:
            pass
"""


class Cables:
    """One to each place, and one to this process."""

    def __init__(self, places: Sequence[str]) -> None:
        number = os.getpid() % 10_000
        subnet = f"10.{130 + number % 50}.{number // 50}"
        self._ports = {place: at for at, place in enumerate((HERE, *places))}
        self._near = {place: f"qc{number}-{at}" for place, at in self._ports.items()}
        self.host = f"{subnet}.1"
        self.networks = {
            place: NodeNetwork(f"quire-{number}-{place}", f"{subnet}.{1 + self._ports[place]}") for place in places
        }
        self._switch: subprocess.Popen[str] | None = None

    def lay(self) -> None:
        for place, at in self._ports.items():
            near, mac = self._near[place], f"02:00:00:00:00:{at:02x}"
            if place == HERE:
                far, network = f"{near}h", None
                _ip("link", "add", near, "type", "veth", "peer", "name", far, "address", mac)
            else:
                far, network = "eth0", self.networks[place]
                _ip("netns", "add", network.namespace)
                _ip(
                    "link", "add", near, "type", "veth", "peer", "name", far, "netns", network.namespace, "address", mac
                )
            host = self.host if network is None else network.host
            within = [] if network is None else ["-n", network.namespace]
            _ip(*within, "addr", "add", f"{host}/24", "dev", far)
            _ip(*within, "link", "set", far, "up")
            _ip("link", "set", near, "up")
            if network is not None:
                _ip(*within, "link", "set", "lo", "up")
            program = [sys.executable, "-c", _PLAIN, far]
            _run(program if network is None else ["ip", "netns", "exec", network.namespace, *program])
        words = [sys.executable, "-m", "tests.torture.switch", *self._near.values()]
        self._switch = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._switch.stdout is not None and self._switch.stdout.readline() == "ready\n"

    def rule(self, one: str, other: str, delay_s: float = 0.0, loss: float = 0.0, both: bool = True) -> None:
        """From one to the other, and back."""
        assert self._switch is not None and self._switch.stdin is not None
        ends = self._ports[one], self._ports[other]
        for source, target in (ends, ends[::-1])[: 1 + both]:
            self._switch.stdin.write(f"{source} {target} {delay_s} {loss}\n")
        self._switch.stdin.flush()

    def among(self, places: Sequence[str], others: Sequence[str], **how: float) -> None:
        for one in places:
            for other in others:
                if one != other:
                    self.rule(one, other, **how)

    def take_up(self) -> None:
        if self._switch is not None:
            self._switch.communicate(timeout=10)
        for network in self.networks.values():
            subprocess.run(["ip", "netns", "del", network.namespace], check=False, capture_output=True, timeout=20)
        for near in self._near.values():
            subprocess.run(["ip", "link", "del", near], check=False, capture_output=True, timeout=20)


@contextmanager
def cables(*places: str) -> Iterator[Cables]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    laid = Cables(places)
    try:
        laid.lay()
        yield laid
    finally:
        laid.take_up()


def _ip(*words: str) -> None:
    _run(["ip", *words])


def _run(words: Sequence[str]) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=60)
