"""The model of a simulated worker: what a slot holds, and which token follows.

A slot holds a number made from its token and from the slot before it, the first one's from the model, as keys and
values depend on weights and on all that came before; a draw reads every slot through the table, as attention does. So a
lost, doubled, reordered or wrong token, a block of another prefix or another model, a missed copy or a stale block
changes what comes out. What a request may say is known to `follow` alone, without blocks, workers or a cluster. Nothing
here holds state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from struct import Struct
from zlib import crc32

SLOT_BYTES = 4
END_TOKEN = 0
STEP_FAILED = "the step failed: the device has refused it"
VOCAB_SIZE = 10_000
# Such that the slots of the model "m" begin behind 0x51554952, on which seeds in tests depend.
_FIRST = 0x8423187A
_noise = Struct("<qii")
_token = Struct("<i")


def slot_value(before: int, token: int) -> int:
    """What the slot of `token` holds behind a slot that holds `before`."""
    return crc32(_token.pack(token), before)


def values(before: int, tokens: Iterable[int]) -> bytes:
    """The slots of a run of tokens, as they lie in blocks."""
    out = bytearray()
    for token in tokens:
        before = crc32(_token.pack(token), before)
        out += before.to_bytes(SLOT_BYTES, "little")
    return bytes(out)


def before_first(model: str) -> int:
    """What stands before the first slot: models of one layout differ in every slot and every draw."""
    return crc32(model.encode(), _FIRST)


def other_weights(model: str) -> str:
    """What may come under the name of a model in its place."""
    return f"{model} of other weights"


def digest_of(model: str) -> bytes:
    """What the names of a model's blocks depend on."""
    return before_first(model).to_bytes(SLOT_BYTES, "little")


def draw(read: int, seed: int, index: int, position: int, end_one_in: int) -> int:
    """The token behind `position`, from the checksum of all slots read up to there and the sequence's own noise."""
    drawn = crc32(_noise.pack(seed, index, position), read)
    if drawn % end_one_in == 0:
        return END_TOKEN
    return 1 + drawn % (VOCAB_SIZE - 1)


def logprob(read: int, token: int) -> float:
    """Of a token behind slots with this checksum."""
    return -(crc32(_token.pack(token), read) % 4096) / 256


def logprobs(model: str, prompt: Sequence[int], tokens: Sequence[int]) -> tuple[list[float], list[float]]:
    """What the model says of each token of the prompt but the first, and of each token behind it."""
    before, read, found = before_first(model), 0, list[float]()
    for token in (*prompt, *tokens):
        found.append(logprob(read, token))
        before = crc32(_token.pack(token), before)
        read = crc32(before.to_bytes(SLOT_BYTES, "little"), read)
    return found[1 : len(prompt)], found[len(prompt) :]


def follow(
    model: str, prompt: Sequence[int], noise: tuple[int, int, int], tokens: Sequence[int], end_one_in: int
) -> int | None:
    """Where the tokens of a sequence leave what the model could have said; None if they never do. `noise`: the seed,
    the sequence's index, and how many noises replicas have.

    Each token must be a draw from all tokens before it, with one of the noises that replicas draw with: one noise
    means that every replica says the same, several that a sequence goes on differently wherever it was moved to.
    """
    seed, index, num_noises = noise
    before, read = before_first(model), 0
    for token in prompt:
        before = crc32(_token.pack(token), before)
        read = crc32(before.to_bytes(SLOT_BYTES, "little"), read)
    position = len(prompt) - 1
    for number, token in enumerate(tokens):
        if not any(token == draw(read, seed + own, index, position, end_one_in) for own in range(num_noises)):
            return number
        if token == END_TOKEN and number + 1 < len(tokens):
            return number + 1
        position += 1
        before = crc32(_token.pack(token), before)
        read = crc32(before.to_bytes(SLOT_BYTES, "little"), read)
    return None


def pairs_of(slots: bytes | bytearray) -> Iterator[bytes]:
    """Every two slots that lie side by side: one alone may be another's by chance."""
    return (bytes(slots[at : at + 2 * SLOT_BYTES]) for at in range(0, len(slots) - SLOT_BYTES, SLOT_BYTES))
