"""InferenceService: each method of the front door as a thin layer of gRPC over the gateway.

A stream waits at its Outlet, fills messages from its cursors, and writes them; while one write is under way, what
arrives is merged into the next message. A stream that breaks leaves its requests to the gateway, which aborts them or
keeps them for their grace. Nothing here keeps a request.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator

from cluster.errors import InvalidRequest, QuireError
from cluster.gateway.answer import MAX_FILL_BYTES, Answer, Cursor, Outlet
from cluster.gateway.calls import Call, Method
from cluster.gateway.errors import resumed_elsewhere, status_of
from cluster.gateway.gateway import Gateway
from cluster.gateway.gateways import lister
from cluster.gateway.intake import check_request_id, read_generate, read_ttl
from protos.quire.v1 import inference_pb2 as pb

MAX_REFUSALS = 256
"""Of one message of GenerateMany: each has its details."""
MAX_RESPONSES = 1_024
"""Responses in one message of GenerateMany; more are written in the next."""


class InferenceService:
    """The methods of quire.v1.InferenceService. Messages come parsed, callers checked (`cluster/gateway/calls.py`)."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    @property
    def methods(self) -> dict[str, Method]:
        return {
            "Generate": self.generate,
            "GenerateMany": self.generate_many,
            "Cancel": self.cancel,
            "ListModels": self.list_models,
            "Tokenize": self.tokenize,
            "Detokenize": self.detokenize,
            "CachePrefix": self.cache_prefix,
            "ListGateways": lister(self._gateway.settings.doors),
        }

    async def generate(self, request: pb.GenerateRequest, call: Call) -> None:
        outlet = Outlet(self._gateway.pace)
        answer = await self._ask(request, call, outlet)
        # The stream may last; its prompt need not.
        del request
        cursor = answer.cursor
        assert cursor is not None
        messages: list[pb.GenerateResponse] = []

        def add() -> pb.GenerateResponse:
            messages.append(pb.GenerateResponse())
            return messages[-1]

        try:
            while not cursor.is_told:
                if not cursor.has_more:
                    await outlet.news()
                    outlet.take()
                if answer.cursor is not cursor:
                    raise resumed_elsewhere()
                # Its first token waits for nothing.
                if cursor.fill(add) and answer.first_token is not None:
                    outlet.pace.writes()
                for message in messages:
                    await call.write(message)
                messages.clear()
            if answer.failure is not None:
                raise answer.failure
        finally:
            outlet.pace.rests()
            self._gateway.leave(answer, cursor, is_final=call.is_past_deadline)

    async def _ask(self, request: pb.GenerateRequest, call: Call, outlet: Outlet) -> Answer:
        question = read_generate(request, call.time_left_s, call.traceparent)
        return await self._gateway.begin(call.caller.tenant, question, outlet)

    async def generate_many(self, requests: AsyncIterator[pb.GenerateManyRequest], call: Call) -> None:
        gateway, tenant = self._gateway, call.caller.tenant
        gateway.begin_stream(tenant)
        try:
            await ManyStream(gateway, call).run(requests)
        finally:
            gateway.door.quotas.end_stream(tenant)

    async def cancel(self, request: pb.CancelRequest, call: Call) -> pb.CancelResponse:
        if not request.request_id:
            raise InvalidRequest("request_id", "is empty", "name the request to cancel")
        check_request_id(request.request_id)
        was_running = self._gateway.cancel(call.caller.tenant, request.request_id)
        return pb.CancelResponse(found=pb.FOUND_RUNNING if was_running else pb.FOUND_NOTHING)

    async def list_models(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        response = pb.ListModelsResponse()
        catalogue = self._gateway.catalogue
        for name, served in catalogue.served.items():
            model = catalogue.models.get(name)
            if model is not None:
                response.models.add(
                    name=name,
                    ready=served.is_ready and self._gateway.is_connected,
                    max_model_len=served.max_model_len or model.max_model_len,
                    vocab_size=model.vocab_size,
                    has_chat_template=model.template is not None,
                    num_replicas=served.num_replicas,
                    detail=served.detail,
                    is_default=name == catalogue.default or len(catalogue.served) == 1,
                )
        return response

    async def tokenize(self, request: pb.TokenizeRequest, call: Call) -> pb.TokenizeResponse:
        tokens, longest = await self._gateway.tokenize(call.caller.tenant, request.model, request.prompt)
        return pb.TokenizeResponse(ids=tokens, max_model_len=longest)

    async def detokenize(self, request: pb.DetokenizeRequest, call: Call) -> pb.DetokenizeResponse:
        skips = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
        text = await self._gateway.detokenize(call.caller.tenant, request.model, request.ids, skips)
        return pb.DetokenizeResponse(text=text)

    async def cache_prefix(self, request: pb.CachePrefixRequest, call: Call) -> pb.CachePrefixResponse:
        ttl_s = read_ttl(request.ttl_s)
        num_prompt, num_kept = await self._gateway.pin(call.caller.tenant, request.model, request.prompt, ttl_s)
        return pb.CachePrefixResponse(prompt_tokens=num_prompt, pinned_tokens=num_kept)


class ManyStream:
    """One GenerateMany stream: a task that reads questions, and a loop that writes what is new of all of them."""

    def __init__(self, gateway: Gateway, call: Call) -> None:
        self._gateway = gateway
        self._call = call
        self._outlet = Outlet(gateway.pace)
        self._answers: dict[int, tuple[Answer, Cursor]] = {}
        self._refused: list[tuple[int, QuireError]] = []
        self._has_room = asyncio.Event()
        self._has_room.set()

    async def run(self, requests: AsyncIterator[pb.GenerateManyRequest]) -> None:
        reader = asyncio.create_task(self._read(requests))
        reader.add_done_callback(lambda task: self._outlet.nudge())
        try:
            while not (reader.done() and not self._answers and not self._refused):
                await self._outlet.news()
                ready = self._outlet.take()
                # First tokens wait for nothing, and what only waits does not count.
                if any(answer.first_token is not None for answer in ready):
                    self._outlet.pace.writes()
                if reader.done() and not reader.cancelled() and reader.exception() is not None:
                    reader.result()
                await self._write(ready)
                if not self._answers:
                    self._outlet.pace.rests()
        finally:
            self._outlet.pace.rests()
            reader.cancel()
            for answer, cursor in self._answers.values():
                self._gateway.leave(answer, cursor, is_final=self._call.is_past_deadline)

    async def _read(self, requests: AsyncIterator[pb.GenerateManyRequest]) -> None:
        bound = self._gateway.settings.max_open_per_stream
        async for request in requests:
            # What was refused counts until it is written: a client that reads nothing gets no further.
            while len(self._answers) + len(self._refused) >= bound:
                self._has_room.clear()
                await self._has_room.wait()
            action = request.WhichOneof("action")
            if action == "generate":
                await self._ask(request)
            elif action == "cancel":
                if request.tag in self._answers:
                    self._gateway.abort(self._answers[request.tag][0])
            else:
                self._refuse(request.tag, InvalidRequest("action", "is missing", "give generate or cancel"))

    async def _ask(self, request: pb.GenerateManyRequest) -> None:
        tag = request.tag
        try:
            if tag in self._answers:
                raise InvalidRequest("tag", f"{tag} is under way on this stream", "give each request its own")
            question = read_generate(request.generate, self._timeout_s(request), self._call.traceparent)
            answer = await self._gateway.begin(self._call.caller.tenant, question, self._outlet, tag)
        except QuireError as error:
            self._refuse(tag, error)
            return
        assert answer.cursor is not None
        self._answers[tag] = (answer, answer.cursor)

    def _timeout_s(self, request: pb.GenerateManyRequest) -> float | None:
        left_s = self._call.time_left_s
        if not request.HasField("timeout_s"):
            return left_s
        if math.isnan(request.timeout_s):
            raise InvalidRequest("timeout_s", "is not a number", "give seconds")
        return request.timeout_s if left_s is None else min(left_s, request.timeout_s)

    def _refuse(self, tag: int, error: QuireError) -> None:
        self._refused.append((tag, error))
        self._outlet.nudge()

    async def _write(self, ready: list[Answer]) -> None:
        """Everything new, in as few messages as the bounds allow."""
        message = pb.GenerateManyResponse()
        refused, self._refused = self._refused, []
        for at, (tag, error) in enumerate(refused):
            _fill_failed(message.responses.add(), tag, error)
            if len(message.responses) >= MAX_REFUSALS or at + 1 == len(refused):
                await self._call.write(message)
                message = pb.GenerateManyResponse()
        self._has_room.set()
        told: list[Cursor] = []
        size = 0
        for answer in ready:
            cursor = answer.cursor
            held = self._answers.get(cursor.tag) if cursor is not None else None
            if cursor is None or held is None or held[1] is not cursor:
                self._lose(answer, message)
                continue
            size += cursor.fill(message.responses.add)
            if cursor.has_more:
                self._outlet.wake(answer)
            elif cursor.is_told:
                if answer.failure is not None:
                    _fill_failed(message.responses.add(), cursor.tag, answer.failure)
                told.append(cursor)
            if len(message.responses) >= MAX_RESPONSES or size >= MAX_FILL_BYTES:
                await self._call.write(message)
                message, size = pb.GenerateManyResponse(), 0
        if message.responses:
            await self._call.write(message)
        for cursor in told:
            answer, _ = self._answers.pop(cursor.tag)
            self._gateway.leave(answer, cursor, is_final=False)
            self._has_room.set()

    def _lose(self, answer: Answer, message: pb.GenerateManyResponse) -> None:
        """Another stream has resumed it."""
        for tag, (held, _) in self._answers.items():
            if held is answer:
                _fill_failed(message.responses.add(), tag, resumed_elsewhere())
                del self._answers[tag]
                self._has_room.set()
                return


def _fill_failed(message: pb.GenerateResponse, tag: int, error: QuireError) -> None:
    message.tag = tag
    message.failed.ParseFromString(status_of(error).SerializeToString())
