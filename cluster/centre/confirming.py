"""A gateway tells of a request that only a replica had told of: from then on it is its own tenant's, with its deadline.

A new scheduler takes over what runs before it hears whose it is. Who comes first with the gateway's word calls `told`.
"""

from __future__ import annotations

from cluster.centre.books import Books
from cluster.centre.deadlines import Deadlines
from cluster.centre.nouns import Request, State
from cluster.centre.waiting import Waiting
from cluster.messages import Submit


class Confirming:
    """What no replica could tell is taken from the gateway's Submit."""

    def __init__(self, books: Books, waiting: Waiting, deadlines: Deadlines) -> None:
        self._books = books
        self._waiting = waiting
        self._deadlines = deadlines

    def told(self, request: Request, submit: Submit) -> bool:
        """True: it is the first word, and knows what no replica could tell."""
        books = self._books
        if request.is_confirmed:
            return False
        request.is_confirmed = True
        tenant = books.tenants.get(submit.tenant)
        request.model, request.deadline, request.grace_s = submit.model, submit.deadline, submit.grace_s
        request.look = submit.look
        if submit.deadline is not None:
            self._deadlines.wake_at(submit.deadline, request)
        if request.state is State.ENDED:
            # It has left its tenant, but may be asked for, or made again.
            request.tenant = tenant
            return True
        waits = request.state is State.QUEUED
        if waits:
            # It left its replica before its gateway was heard of: it waits among its own tenant's requests from now on.
            self._waiting.withdraw(request)
        books.tenants.leave(request.tenant)
        request.tenant = tenant
        books.tenants.enter(tenant)
        if waits:
            self._waiting.queue(request)
        return True
