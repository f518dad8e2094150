"""The words that scheduler, workers, gateways and host pools say to each other, as plain frozen dataclasses.

The scheduler takes events and gives orders; a worker takes plans and gives results and tokens. Everything
here is a value: ints, bytes, tuples and flat int arrays, so that it can be written to a journal, sent as
protobuf (`protos/quire/v1/control.proto` is the twin, `cluster/wire/plans.py` converts) and replayed. Nothing
here decides or imports anything heavy. `plans`, `results`, `events` and `orders` say who tells whom.

Words used by every message:
  seq       one attempt of one sequence, unique for ever. A sequence that is preempted, moved or
            restarted gets a new seq, so stale messages never match.
  position  how many token positions of a sequence have their keys and values written.
  length    how many tokens of a sequence are known (prompt and output); a decoding sequence has
            length == position + 1: the last sampled token is written by the next step.
  lease_end the first position that a sequence may not write yet.
  route     a gateway's own number for a request; tokens are addressed by it.
"""

from cluster.messages.events import (
    Adopt,
    Cancel,
    Claim,
    Closed,
    CloseModel,
    Departed,
    Drain,
    Event,
    Find,
    GatewayLost,
    GatewayState,
    HostPoolJoined,
    HostPoolLost,
    HostPoolSettled,
    OpenRequest,
    Pin,
    ReplicaJoined,
    ReplicaLost,
    ReplicaState,
    Resident,
    Sealed,
    StopAt,
    Submit,
    Tick,
)
from cluster.messages.orders import (
    Accepted,
    Done,
    Expel,
    Found,
    GiveUp,
    HandOver,
    Order,
    Refused,
    Replay,
    Seal,
    Started,
    TurnAway,
)
from cluster.messages.plans import Beams, Copy, Drop, Extends, Fork, Plan, Reroute, Revoke, Road, Start, Transfer
from cluster.messages.results import Advances, GroupTables, Logprobs, Result, Revoked, Stopped, Tokens, Transferred
from cluster.messages.values import ATTEMPT_BITS, EPOCH_BITS, Ids, Reason, ids

__all__ = [
    "Accepted",
    "Adopt",
    "Advances",
    "Beams",
    "Cancel",
    "Claim",
    "CloseModel",
    "Closed",
    "Copy",
    "Departed",
    "Done",
    "Drain",
    "Drop",
    "ATTEMPT_BITS",
    "EPOCH_BITS",
    "Event",
    "Expel",
    "Extends",
    "Find",
    "Fork",
    "Found",
    "GatewayLost",
    "GatewayState",
    "GiveUp",
    "GroupTables",
    "HandOver",
    "HostPoolJoined",
    "HostPoolLost",
    "HostPoolSettled",
    "Ids",
    "Logprobs",
    "OpenRequest",
    "Order",
    "Pin",
    "Plan",
    "Reason",
    "Refused",
    "Replay",
    "ReplicaJoined",
    "ReplicaLost",
    "ReplicaState",
    "Reroute",
    "Resident",
    "Result",
    "Revoke",
    "Revoked",
    "Road",
    "Seal",
    "Sealed",
    "Start",
    "Started",
    "StopAt",
    "Stopped",
    "Submit",
    "Tick",
    "Tokens",
    "Transfer",
    "Transferred",
    "TurnAway",
    "ids",
]
