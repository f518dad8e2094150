"""How much memory a device has, how much of it is free, and what a call takes at its peak.

The worker asks at start, to size its pool. On a CPU the bound is the machine's available memory or what the control
group leaves, whichever is less; on a GPU it is what the driver reports. Nothing here allocates or remembers.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import torch

from worker.host_memory import available_bytes, lines_of


def free_bytes(device: torch.device) -> int:
    """Bytes that this process could still take on `device`."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch's allocator holds and does not use is free to us.
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return available_bytes()


def peak_bytes(device: torch.device, call: Callable[[], object]) -> int:
    """What `call` takes at its highest beyond what is held before it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    before = _status("VmRSS")
    try:
        # Makes the kernel count the peak anew; where that is not allowed the peak of the whole process bounds it.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    call()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    for line in lines_of("/proc/self/status"):
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0
