"""Memory that several processes of a machine see: made here, mapped here, gone with the last process that has it.

It is an unnamed file in memory (memfd), not a file in /dev/shm: containers give that little room, and a name outlives a
process that is killed. The file is sealed against a change of size, so that no peer can make another one fault. A pool
hands its descriptor on through `worker/transfer/handover.py`; who may write where is decided by its register.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import threading
import weakref
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cluster.errors import ConfigError
from cluster.sizes import format_bytes
from kernels.device.host_memory import available_bytes

_POPULATE_READ, POPULATE_WRITE = 22, 23  # of madvise, since Linux 5.14; mmap and os have no names
_POPULATE_BYTES = 256 << 20
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt
_KEPT_BYTES = 128 << 20
_LARGEST_BYTES = 32 << 20  # the most that glibc takes for it

# All that are open in this process.
_mapped: weakref.WeakSet[SharedMemory] = weakref.WeakSet()
_mapped_lock = threading.Lock()

_libc = ctypes.CDLL(None, use_errno=True)
_madvise = _libc.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


Pin = Callable[[int, int], Callable[[], None] | None]


def mapping_at(address: int) -> SharedMemory | None:
    """The memory of ours that lies there."""
    with _mapped_lock:
        found = list(_mapped)
    return next((one for one in found if one.address <= address < one.address + one.size), None)


def keep_freed_memory() -> None:
    """Has the C library keep what this process frees for its next messages. By itself it gives a buffer of 1 MiB back
    to the system and gets every page of the next one anew, which is half of the processor time of receiving it."""
    mallopt = getattr(_libc, "mallopt", None)  # glibc's
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)


class SharedMemory:
    """One mapping of a memory file. `address` is where it begins in this process."""

    def __init__(self, descriptor: int, size: int, *, writable: bool) -> None:
        """Takes `descriptor` over and maps it; raises OSError if its size is another one."""
        actual = os.fstat(descriptor).st_size
        if actual != size:
            os.close(descriptor)
            raise OSError(errno.EINVAL, f"the memory file has {actual:,} bytes, {size:,} were announced")
        self.descriptor = descriptor
        self.size = size
        self.writable = writable
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._map = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED, prot=protection)
        for advice in ("MADV_DONTFORK", "MADV_HUGEPAGE"):
            # A child must not be able to write after its parent was proven dead. Large pages are only faster.
            try:
                self._map.madvise(getattr(mmap, advice))
            except OSError:
                pass
        self._array: npt.NDArray[np.uint8] | None = np.frombuffer(self._map, np.uint8)
        self.address = int(self._array.ctypes.data)
        # By the first of the bytes that were pinned together.
        self._unpins: dict[int, Callable[[], None]] = {}
        self._pinning = threading.Lock()
        with _mapped_lock:
            _mapped.add(self)

    @classmethod
    def create(cls, name: str, size: int) -> SharedMemory:
        """A new memory file, all of it taken from the system now rather than in the middle of a copy."""
        # The system would give more than it has, and then end processes.
        available = available_bytes()
        if size > available:
            raise ConfigError(
                f"{format_bytes(size)} of shared memory for {name}, and {format_bytes(available)} are available; "
                "set a smaller pool"
            )
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size)
            os.posix_fallocate(descriptor, 0, size)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        except OSError as error:
            os.close(descriptor)
            raise ConfigError(
                f"the system refused {format_bytes(size)} of shared memory for {name} ({error.strerror}); "
                "set a smaller pool"
            ) from error
        return cls(descriptor, size, writable=True)

    def array(self) -> npt.NDArray[np.uint8]:
        """uint8 [size], a view."""
        assert self._array is not None, "the memory was closed"
        return self._array

    def read_only(self) -> int:
        """A new descriptor of the same memory through which nobody can write."""
        return os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDONLY | os.O_CLOEXEC)

    def populate(self) -> None:
        """Sets up the page tables of this process, so that copies do not stop for it (Linux 5.14)."""
        advice = POPULATE_WRITE if self.writable else _POPULATE_READ
        for offset in range(0, self.size, _POPULATE_BYTES):
            if _madvise(self.address + offset, min(_POPULATE_BYTES, self.size - offset), advice) != 0:
                return

    def pin(self, first: int, end: int, pin: Pin) -> None:
        """Pins these bytes for a device, once, so that its copies run by themselves. Not all of the memory at once:
        that would stop the steps of a worker for seconds."""
        # Of two transfers that come at once the second would be refused, and forget how to let go.
        with self._pinning:
            if self.writable and first not in self._unpins:
                # Where the system refuses, copies wait.
                self._unpins[first] = pin(self.address + first, end - first) or (lambda: None)

    def close(self) -> None:
        """Unmaps and closes. Nothing may use the memory any more."""
        if self._array is None:
            return
        for unpin in self._unpins.values():
            unpin()
        self._unpins.clear()
        with _mapped_lock:
            _mapped.discard(self)
        self._array = None
        self._map.close()
        os.close(self.descriptor)
