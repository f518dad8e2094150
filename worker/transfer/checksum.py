"""CRC32C of memory, alone or fused with a copy: how every chunk of a transfer is checked.

Addresses come in, so that pools in shared memory, pinned memory and plain buffers are all the same. Python's lock is
not held while bytes are read. On x86-64 with carry-less products the code of `worker/transfer/kernel.py` runs, at the
speed of memory; elsewhere numpy copies and google-crc32c checks, a piece that stays in the cache at a time. Which bytes
belong together is the caller's business.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cluster.register.states import Sums
from worker.transfer.kernel import kernel_text

Addresses = npt.NDArray[np.int64]

_PIECE_BYTES = 128 << 10
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64


class Checksummer(Protocol):
    """One way of doing it. `name` says which in start-up lines and benchmarks."""

    name: str

    def checksum(self, source: int, length: int) -> int:
        """CRC32C of `length` bytes at the address `source`."""

    def copy(self, target: int, source: int, length: int) -> int:
        """Copies `length` bytes and returns their CRC32C. The two runs of bytes must not overlap."""

    def copy_many(self, targets: Addresses | None, sources: Addresses, lengths: Addresses) -> Sums:
        """One CRC32C per piece; pieces are copied unless `targets` is None. No two targets may overlap."""


@lru_cache(maxsize=1)
def checksummer() -> Checksummer:
    """The fastest way on this machine, made at the first call (about 60 ms)."""
    return _compiled() or Plain()


class Fused:
    """Copy and CRC in one pass over memory, by machine code that was made for this processor."""

    def __init__(self, lanes: int, address_of: Callable[[str], int], keep: object) -> None:
        self.name = f"fused, {lanes * 64}-bit products"
        self._keep = keep  # the code lives as long as its engine
        one = ctypes.CFUNCTYPE(ctypes.c_uint32, _POINTER, _POINTER, _SIZE)
        self._checksum = one(address_of("checksum"))
        self._copy = one(address_of("copy"))
        self._stream = one(address_of("stream"))
        self._many = ctypes.CFUNCTYPE(None, _POINTER, _POINTER, _POINTER, _POINTER, _SIZE)(address_of("copy_many"))

    def checksum(self, source: int, length: int) -> int:
        return int(self._checksum(None, source, length))

    def copy(self, target: int, source: int, length: int) -> int:
        return int((self._copy if target % 64 else self._stream)(target, source, length))

    def copy_many(self, targets: Addresses | None, sources: Addresses, lengths: Addresses) -> Sums:
        crcs = np.empty(len(sources), np.uint32)
        _check_many(targets, sources, lengths)
        at = None if targets is None else targets.ctypes.data
        self._many(at, sources.ctypes.data, lengths.ctypes.data, crcs.ctypes.data, len(sources))
        return crcs


class Plain:
    """Copy and CRC one after the other, a piece at a time, for processors without carry-less products."""

    name = "inline, google-crc32c"

    def __init__(self) -> None:
        import google_crc32c

        self._extend: Callable[[int, object], int] = google_crc32c.extend

    def checksum(self, source: int, length: int) -> int:
        return self._extend(0, memory_at(source, length)) if length else 0

    def copy(self, target: int, source: int, length: int) -> int:
        crc = 0
        for offset in range(0, length, _PIECE_BYTES):
            size = min(_PIECE_BYTES, length - offset)
            piece = memory_at(source + offset, size)
            np.copyto(memory_at(target + offset, size), piece)
            crc = self._extend(crc, piece)
        return crc

    def copy_many(self, targets: Addresses | None, sources: Addresses, lengths: Addresses) -> Sums:
        crcs = np.empty(len(sources), np.uint32)
        _check_many(targets, sources, lengths)
        for i, (source, length) in enumerate(zip(sources.tolist(), lengths.tolist(), strict=True)):
            crcs[i] = self.checksum(source, length) if targets is None else self.copy(int(targets[i]), source, length)
        return crcs


def memory_at(address: int, length: int) -> npt.NDArray[np.uint8]:
    """A view of memory that the caller keeps alive."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * length).from_address(address))


def address_of(buffer: object) -> int:
    """Where the bytes of a contiguous buffer (bytes, memoryview, array) lie; the caller keeps it alive."""
    return int(np.frombuffer(buffer, np.uint8).ctypes.data)  # type: ignore[call-overload]


def _check_many(targets: Addresses | None, sources: Addresses, lengths: Addresses) -> None:
    for array in (targets, sources, lengths):
        if array is not None:
            assert array.dtype == np.int64 and array.flags.c_contiguous and len(array) == len(sources), array


_compiling = threading.Lock()


def _compiled() -> Fused | None:
    try:
        import llvmlite.binding as llvm
    except ImportError:
        return None
    with _compiling:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        lanes = _lanes(llvm.get_host_cpu_features())
        if lanes == 0:
            return None
        triple = llvm.get_process_triple()
        machine = llvm.Target.from_triple(triple).create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True
        )
        try:
            module = llvm.parse_assembly(f'target triple = "{triple}"\n' + kernel_text(lanes))
        except RuntimeError:  # an LLVM that wants typed pointers
            return None
        engine = llvm.create_mcjit_compiler(module, machine)
        engine.finalize_object()
        return Fused(lanes, engine.get_function_address, engine)


def _lanes(features: dict[str, bool]) -> int:
    """The widest carry-less product of this processor, in 64-bit words; 0: none."""
    if not (features.get("sse4.2") and features.get("pclmul")):
        return 0
    if features.get("vpclmulqdq") and features.get("avx512f"):
        return 8
    return 4 if features.get("vpclmulqdq") and features.get("avx2") else 2
