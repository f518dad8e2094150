"""The conversation with a replica: results are taken in order, plans are numbered and sent.

The link below brings each once and in order. A result that does not follow the last one is a ProtocolError all the
same: what its replica told can be believed no more.
"""

from __future__ import annotations

from cluster.centre.nouns import Replica
from cluster.centre.plan_draft import PlanDraft
from cluster.centre.residents import end_copies
from cluster.errors import ProtocolError
from cluster.messages import Plan, Result


class Plans:
    """Numbers what is said to replicas, and looks at the numbers of what they say."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch

    def take(self, replica: Replica, result: Result) -> None:
        """Notes the envelope of a result."""
        if result.number != replica.last_result + 1 or result.plan > replica.last_plan:
            raise ProtocolError(
                f"result {result.number} of plan {result.plan} came after {replica.last_result}, "
                f"and {replica.last_plan} plans"
            )
        replica.last_result = result.number
        replica.write()
        replica.prefill_waiting = result.prefill_waiting
        replica.prefill_tokens_per_s = result.prefill_tokens_per_s or replica.prefill_tokens_per_s
        replica.step_seconds = result.step_seconds or replica.step_seconds
        replica.num_dry += result.dry
        end_copies(replica, result.plan)

    def next(self, replica: Replica) -> Plan | None:
        """The plan of this turn, numbered; None if there is nothing to say."""
        draft = replica.draft
        if not draft:
            return None
        replica.draft = PlanDraft()
        replica.last_plan += 1
        return Plan(
            replica=replica.name,
            incarnation=replica.incarnation,
            epoch=self._epoch,
            number=replica.last_plan,
            ahead=replica.ahead,
            result=replica.last_result,
            extends=draft.extends,
            starts=tuple(draft.starts),
            drops=tuple(draft.drops),
            revokes=tuple(draft.revokes),
            reroutes=tuple(draft.reroutes),
            copies=tuple(draft.copies),
            transfers=tuple(draft.transfers),
            aborts=tuple(draft.aborts),
            clears=draft.clears,
        )
