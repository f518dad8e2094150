"""Names, reservations and registers for the tests of the pure state machine of transfers."""

import numpy as np
import pytest

from cluster.register.moving import Moving
from cluster.register.register import Register, RegisterSettings
from cluster.register.states import (
    Carrier,
    NotObeyed,
    PoolLayout,
    Reservation,
    TransferKey,
    TransferName,
    WhyRefused,
)

LAYOUT = PoolLayout("f", 256, 128)
NUM_BLOCKS = 6
INCARNATION = 7


def name(
    transfer: int, epoch: int = 1, part: int = 0, caller: str = "w", life: int = 1, pool: int = INCARNATION
) -> TransferName:
    return TransferName(TransferKey(epoch, transfer, part, caller), life, pool)


def asked(
    named: TransferName,
    blocks: list[int],
    write: bool = True,
    carrier: Carrier = Carrier.SOCKET,
    timeout_s: float = 10.0,
    session: int = 0,
    layout: PoolLayout = LAYOUT,
) -> Reservation:
    return Reservation(named, write, layout, np.array(blocks, np.int32), carrier, timeout_s, session)


def register(*, own_content: bool = False, **bounds: float) -> Register:
    settings = RegisterSettings(**bounds)  # type: ignore[arg-type]
    made = Register(LAYOUT, NUM_BLOCKS, INCARNATION, settings, own_content=own_content)
    for session in (1, 3, 4):
        made.session_began(session, "w", 1, write=True)
    return made


def fill(made: Register, moving: Moving, now: float, crc: int = 5) -> None:
    for first, count in moving.missing(100):
        made.begin_chunks(moving, first, count, now)
        made.end_chunks(moving, first, count, np.full(count, crc, np.uint32), now)
    assert made.begin_finish(moving, now)
    made.end_finish(moving, True, now)


def refused(why: WhyRefused, words: str = "") -> "pytest.RaisesExc[NotObeyed]":
    return pytest.raises(NotObeyed, match=words or None, check=lambda error: error.refusal is why)
