"""The keyed, chained hash of full blocks: how a prefix is named all over the cluster.

Gateways hash prompts, workers hash generated blocks, the scheduler only compares. The key is one per cluster, the
digest one per model (`worker/model/digest.py`) and the salt one per tenant: what one model computed is never found for
another, and nobody can guess or probe another tenant's prefixes. Fields are typed by their fixed place and
length-prefixed; a hash names all tokens from the start of the sequence to the end of its block.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

from cluster.messages import Ids

HASH_BYTES = 16
DIGEST_BYTES = 16
"""Of a model's digest."""


class BlockHasher:
    """Hashes the blocks of one model and tenant. Holds no state between calls."""

    def __init__(self, key: bytes, digest: bytes, salt: bytes, block_size: int) -> None:
        self.block_size = block_size
        root = struct.pack("<III", block_size, len(digest), len(salt)) + digest + salt
        self._seed = blake2b(root, key=key, digest_size=HASH_BYTES, person=b"quire.block.v2")

    def extend(self, parent: bytes, tokens: bytes) -> bytes:
        """The hash of a block from its parent's hash (b"" for the first) and the bytes of its ids (int32 each)."""
        state = self._seed.copy()
        state.update(struct.pack("<II", len(parent), len(tokens)))
        state.update(parent)
        state.update(tokens)
        return state.digest()

    def prompt(self, tokens: Ids) -> tuple[bytes, ...]:
        """The hashes of all full blocks of a prompt."""
        raw = tokens.tobytes()
        size = self.block_size * tokens.itemsize
        hashes: list[bytes] = []
        parent = b""
        for start in range(0, len(raw) - size + 1, size):
            parent = self.extend(parent, raw[start : start + size])
            hashes.append(parent)
        return tuple(hashes)
