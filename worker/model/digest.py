"""What a model is, in 16 bytes: the digest that every block's name depends on (`cluster/hashing.py`).

It covers the bytes of the weight files, the configuration, the dtype that is computed in, and an adapter where there is
one: all that decides which keys and values a token gets. How these lie in a block is named beside it, by the layout's
fingerprint, because pools of one model may have several. Loading begins it and takes the result when the weights are
in memory: the files are read once from disk, and hashed by threads of their own meanwhile.

Cost, on a machine with SHA instructions: 0.6 s of processor time for each GiB, shared among `NUM_THREADS` and beside
what loading takes (blake2b: 1.2 s; blake3 of PyPI: 0.23 s, which is not worth a dependency here).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from struct import pack
from types import TracebackType
from typing import Any

from cluster.errors import ModelError
from cluster.hashing import DIGEST_BYTES

# A piece is hashed by one thread, which reads it in parts that stay in its processor's cache.
PIECE_BYTES = 64 << 20
_PART_BYTES = 1 << 20
NUM_THREADS = max(1, min(8, (os.cpu_count() or 1) // 2))


class ModelDigest:
    """The digest of one model on its way. A context: when it is left, no thread of it runs any more."""

    def __init__(self, files: Sequence[Path], config: Mapping[str, Any], dtype: str, adapter: bytes = b"") -> None:
        """Begins at once. `adapter`: the digest of what changes the weights, if anything does."""
        self._threads = ThreadPoolExecutor(NUM_THREADS, "digest")
        words = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
        self._fields: list[bytes] = [words, dtype.encode(), adapter]
        self._files = files
        self._pieces: list[Future[bytes]] = [
            self._threads.submit(_hash_piece, file, at)
            for file in files
            for at in range(0, max(1, file.stat().st_size), PIECE_BYTES)
        ]

    def __enter__(self) -> ModelDigest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)

    def result(self) -> bytes:
        """Waits for what is still being hashed. Raises ModelError for a file that can't be read any more."""
        try:
            pieces = b"".join([piece.result() for piece in self._pieces])
        except OSError as error:
            folder = self._files[0].parent
            raise ModelError(f"the weights in {folder} can't be read: {error}; fetch them again") from error
        whole = sha256(b"quire.model.v1")
        for field in (pieces, *self._fields):
            whole.update(pack("<Q", len(field)))
            whole.update(field)
        return whole.digest()[:DIGEST_BYTES]


def _hash_piece(file: Path, at: int) -> bytes:
    """Of the piece's place and bytes; file names mean nothing."""
    state, buffer = sha256(pack("<Q", at)), bytearray(_PART_BYTES)
    view, end = memoryview(buffer), at + PIECE_BYTES
    with file.open("rb", buffering=0) as opened:
        opened.seek(at)
        while at < end:
            count = opened.readinto(view[: end - at])
            if not count:
                break
            state.update(view[:count])
            at += count
    return state.digest()
