"""How a compiled kernel gets its arguments and its threads.

Arguments are 64-bit words in one array that is used again for every call of a backend: addresses, integers, and
float32 in the low half. Two words on cache lines of their own are shared by the threads: the counter they take tasks
from and the ticket that numbers them. Threads are torch's own OpenMP threads where torch uses GNU OpenMP, so that the
kernels and torch's matrix products never compete for the cores; elsewhere a few Python threads run the same code.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from kernels.cpu.ir import F32, Code, Kind, Pointer, Value
from kernels.cpu.jit import Kernel

COUNTER, TICKET, _FIRST = 0, 8, 16


class ArgumentList:
    """The names of a kernel's arguments and where each lies."""

    def __init__(self, *names: str) -> None:
        self.offsets = {name: _FIRST + number for number, name in enumerate(names)}

    def reader(self, code: Code) -> ArgumentReader:
        return ArgumentReader(self, code)

    def counter(self, code: Code) -> Pointer:
        return code.arguments.at(COUNTER)

    def ticket(self, code: Code) -> Pointer:
        return code.arguments.at(TICKET)


class ArgumentReader:
    """Reads arguments in emitted code."""

    def __init__(self, names: ArgumentList, code: Code) -> None:
        self.names = names
        self.code = code

    def integer(self, name: str) -> Value:
        return self.code.arguments.load(self.names.offsets[name])

    def number(self, name: str) -> Value:
        return self.code.arguments.at(self.names.offsets[name]).of(F32).load(0)

    def pointer(self, name: str, kind: Kind) -> Pointer:
        return self.code.pointer(self.integer(name), kind)


class KernelCall:
    """One kernel's argument array on the host. One thread at a time may use it."""

    def __init__(self, names: ArgumentList) -> None:
        self._offsets = names.offsets
        words = _FIRST + len(names.offsets)
        memory = np.zeros(words + 8, dtype=np.int64)
        skip = (-memory.ctypes.data % 64) // 8
        aligned = memory[skip : skip + words]
        self.address = int(aligned.ctypes.data)
        # Single items of a memoryview are set in half the time that an array's take.
        self._words: memoryview[int] = aligned.data
        self._floats: memoryview[float] = self._words.cast("B").cast("f")

    def set(self, **values: int) -> None:
        for name, value in values.items():
            self._words[self._offsets[name]] = value

    def set_floats(self, **values: float) -> None:
        for name, value in values.items():
            self._floats[self._offsets[name] * 2] = value

    def begin(self) -> None:
        """Before a run: no task is taken, no thread is numbered."""
        self._words[COUNTER] = 0
        self._words[TICKET] = 0

    def run(self, kernel: Kernel, num_threads: int) -> None:
        """Runs the kernel on so many threads, the caller's included, and returns when all are done."""
        self.begin()
        if num_threads <= 1:
            kernel(self.address)
        else:
            _team().run(kernel, self.address, num_threads)


class _OpenMpTeam:
    """The threads that torch uses too: GNU OpenMP keeps one team per calling thread."""

    def __init__(self, library: Path) -> None:
        self._parallel = ctypes.CDLL(str(library)).GOMP_parallel
        self._parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self._parallel.restype = None

    def run(self, kernel: Kernel, address: int, num_threads: int) -> None:
        self._parallel(kernel.address, address, num_threads, 0)


class _PythonTeam:
    """Where torch runs on another OpenMP: threads of our own, asleep between calls."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=256, thread_name_prefix="kernels")

    def run(self, kernel: Kernel, address: int, num_threads: int) -> None:
        others = [self._pool.submit(kernel, address) for _ in range(num_threads - 1)]
        kernel(address)
        for other in others:
            other.result()


@lru_cache(maxsize=1)
def _team() -> _OpenMpTeam | _PythonTeam:
    libraries = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    libraries += sorted((Path(torch.__file__).parent.parent / "torch.libs").glob("libgomp*.so*"))
    return _OpenMpTeam(libraries[0]) if libraries else _PythonTeam()
