"""The way to a device: `device_of` gives the one object for a torch device, `find_device` the device of a setting.

There are three: `gpu.py` (CUDA and HIP), `host.py` (the CPU) and `twin/` (device memory that is apart, work that is
late: what is wrong on a GPU is wrong there, on a machine without one). All keep the contract of `contract.py`.
Whoever wants to know what kind of device it has asks these objects and never compares `device.type`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from kernels.device.contract import Device, Event, Facts, Family, Graph, GraphPool, Stream

__all__ = [
    "Device",
    "Event",
    "Facts",
    "Family",
    "Graph",
    "GraphPool",
    "Stream",
    "device_of",
    "find_device",
    "standing_in",
]

_devices: dict[torch.device, Device] = {}


def device_of(device: torch.device) -> Device:
    """The one object for this device."""
    found = _devices.get(device)
    if found is None:
        found = _devices[device] = _make(device)
    return found


@contextlib.contextmanager
def standing_in(device: torch.device, seam: Device) -> Iterator[None]:
    """Within it `seam` is what answers for this device: for benchmarks of all that is around one."""
    before = _devices.get(device)
    _devices[device] = seam
    try:
        yield
    finally:
        _devices.pop(device)
        if before is not None:
            _devices[device] = before


def _make(device: torch.device) -> Device:
    if device.type == "cpu":
        from kernels.device.host import HostDevice

        return HostDevice()
    if device.type == "cuda":
        from kernels.device.gpu import GpuDevice

        return GpuDevice(device)
    from kernels.device.twin.device import NAME, TwinDevice

    if device.type != NAME:
        raise ValueError(f"there is no way to a device of type {device.type!r}")
    return TwinDevice(device)


def find_device(name: str) -> torch.device:
    """The device of a setting: cpu, cuda, cuda:N, twin, twin:N, each twin with @SEED behind it; or auto. Raises a
    ValueError that says what is wrong."""
    kind, _, index = name.partition("@")[0].partition(":")
    if index and not index.isdecimal():
        kind = ""
    number = int(index or 0)
    if kind == "auto" and not index:
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if kind == "cpu" and not index:
        return torch.device("cpu")
    if kind == "cuda":
        count = torch.cuda.device_count()
        if number >= count:
            raise ValueError(f'device is {name!r}, and this machine has {count} GPUs; give another or "cpu"')
        return torch.device("cuda", number)
    if kind == "twin":
        from kernels.device.twin.device import open_twin

        return open_twin(number, name.partition("@")[2])
    raise ValueError(f'device is {name!r}; give "cpu", "cuda", "cuda:N", "twin" or "auto"')
