"""A device's pool: one page-aligned allocation in which a block is contiguous over all layers.

The worker makes one after it has decided the number of blocks, hands the per-layer views to the model, and tells it
which blocks lost their content. In debug mode such blocks are filled with NaN, so that a read of a slot that nobody has
written shows in the output. It knows neither who holds a block nor why: that is the scheduler's ledger.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Sequence

import numpy as np
import torch

from cluster.errors import ConfigError
from cluster.sizes import format_bytes
from kernels.device.host_memory import lines_of
from kernels.device.seam import device_of
from kernels.layout import BlockLayout, LayerCache
from kernels.reference import write_kv
from kernels.sampling import send
from worker.transfer.memory import POPULATE_WRITE, SharedMemory

HUGE_PAGE_BYTES = 2 << 20
# Up to here a pool of small pages is as fast as one of large pages: its translations fit into the processor.
SMALL_POOL_BYTES = 8 << 20
# So much of a pool is taken from the system when it is made, if that takes no longer than this.
TAKEN_BYTES, TAKING_S = 256 << 20, 0.5
SHARED_PAGES = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"


class DevicePool:
    """The bytes of `num_blocks` blocks. `bytes` is uint8 [num_blocks, block_bytes], `layers` the views of it.

    `shared` is the memory that other processes of the node can map, if that was wanted and costs attention nothing.
    """

    def __init__(
        self,
        layout: BlockLayout,
        num_blocks: int,
        device: torch.device,
        *,
        debug: bool = False,
        wants_sharing: bool = False,
    ) -> None:
        assert num_blocks >= 1, num_blocks
        self.layout = layout
        self.num_blocks = num_blocks
        self.device = device
        self.debug = debug
        size = num_blocks * layout.block_bytes
        self.shared: SharedMemory | None = None
        if wants_sharing and not device_of(device).is_apart and (size <= SMALL_POOL_BYTES or _shared_pages_are_large()):
            self.shared = SharedMemory.create("quire-device-pool", size)
        flat = _allocate(size, device) if self.shared is None else torch.from_numpy(self.shared.array())
        self.bytes = flat.view(num_blocks, layout.block_bytes)
        self.layers: list[LayerCache] = layout.views(self.bytes)
        self._elements = self.bytes.view(layout.dtype)
        if debug:
            self._elements.fill_(float("nan"))

    def forget(self, blocks: Sequence[int]) -> None:
        """These blocks hold nothing any more. In debug mode a later read of them gives NaN."""
        if self.debug and len(blocks):
            self._elements[self._index(blocks)] = float("nan")

    def forget_from(self, blocks: Sequence[int], first: int) -> None:
        """The same, of the first of these blocks from slot `first` on."""
        if self.debug and first:
            self._forget_slots(blocks[0], first)
            blocks = blocks[1:]
        self.forget(blocks)

    def _forget_slots(self, block: int, first: int) -> None:
        size = self.layout.block_size
        slots = torch.arange(block * size + first, (block + 1) * size, device=self.device)
        for layer in self.layers:
            heads = (len(slots), layer.num_kv_heads)
            k = torch.full((*heads, layer.head_dim), float("nan"), dtype=self.layout.dtype, device=self.device)
            v = torch.full((*heads, layer.value_dim), float("nan"), dtype=self.layout.dtype, device=self.device)
            # The reference knows every layout; speed is no concern here.
            device_of(self.device).call(write_kv, k, v, layer, slots)

    def clear(self, blocks: Sequence[int]) -> None:
        """Overwrites these blocks with zeros, for tenants that ask for it when their blocks are freed."""
        if len(blocks):
            self.bytes[self._index(blocks)] = 0

    def _index(self, blocks: Sequence[int]) -> torch.Tensor:
        return send(np.array(blocks, np.int64), self.device)


def _shared_pages_are_large() -> bool:
    """Whether the system gives large pages under shared memory that asks for them."""
    chosen = [word for line in lines_of(SHARED_PAGES) for word in line.split() if word.startswith("[")]
    return bool(chosen) and chosen[0] not in ("[never]", "[deny]")


def _allocate(size: int, device: torch.device) -> torch.Tensor:
    """uint8 [size], starting on a page. CPU memory is taken from the system as it is first written, but for the first
    of it, which the first requests would have to wait for."""
    if not device_of(device).is_apart:
        try:
            pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise ConfigError(
                f"the system refused {format_bytes(size)} for the pool ({error}); set a smaller kv_memory"
            ) from error
        if hasattr(mmap, "MADV_HUGEPAGE") and size >= HUGE_PAGE_BYTES:
            try:
                # Blocks lie scattered; large pages save most of the address translation.
                pages.madvise(mmap.MADV_HUGEPAGE)
                _take_first(pages, size)
            except OSError:
                pass
        return torch.frombuffer(pages, dtype=torch.uint8)
    try:
        return torch.empty(size, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"{device} refused {format_bytes(size)} for the pool; set a smaller kv_memory") from error


def _take_first(pages: mmap.mmap, size: int) -> None:
    """Has the system give the beginning of these pages now. That is over at once where it has such pages at hand; on a
    virtual machine whose host gives them one by one it costs a third of the prefill of a small model."""
    began = time.monotonic()
    for start in range(0, min(size, TAKEN_BYTES), HUGE_PAGE_BYTES):
        if time.monotonic() - began > TAKING_S:
            return
        pages.madvise(POPULATE_WRITE, start, min(HUGE_PAGE_BYTES, size - start))
