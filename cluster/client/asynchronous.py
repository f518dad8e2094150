"""The asynchronous client: `async with AsyncClient("gateway:50051") as client`. The base install is enough for it.

Results are those of the embedded engine (`cluster/offline/outputs.py`), errors those of `cluster/errors.py`. Requests
have an id and a seed before they are sent, and go on by position when a connection breaks.
`cluster/client/blocking.py` has the same methods without async.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import grpc.aio

from cluster.client.connection import DEFAULT_ADDRESS, Connection, Tls
from cluster.client.request import Options, Prompt, Reception, generate_message, prompt_message
from cluster.client.stream import Many, receive
from cluster.errors import InvalidRequest, QuireError, Unavailable
from cluster.offline.outputs import RequestOutput, StreamOutput
from cluster.sampling import SETTING_NAMES, SamplingParams
from protos.quire.v1 import inference_pb2 as pb
from protos.quire.v1.inference_pb2_grpc import InferenceServiceAsyncStub

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model that is served."""

    name: str
    is_ready: bool
    max_model_len: int
    vocab_size: int
    has_chat_template: bool
    num_replicas: int
    detail: str
    is_default: bool


class AsyncClient:
    """Speaks to one gateway, or to whichever of several answers; it learns of the others from any of them."""

    def __init__(
        self, address: str | Sequence[str] = DEFAULT_ADDRESS, *, token: str | None = None, tls: Tls | None = None
    ) -> None:
        self._connection = Connection(address, token, tls)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Waits a moment until streams that were left are ended at the gateway too."""
        await self._connection.close()

    # -- generating

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, options: Options | None = None, **settings: Any
    ) -> AsyncGenerator[StreamOutput, None]:
        """Tokens of one prompt as they come. `settings` are fields of `SamplingParams` or `Options` by name."""
        return self._receive(prompt, *_chosen(params, options, settings))

    async def _receive(
        self, prompt: Prompt, params: SamplingParams, options: Options
    ) -> AsyncGenerator[StreamOutput, None]:
        reception = Reception(prompt, generate_message(prompt, params, options))
        async with aclosing(receive(self._connection, reception, options.timeout_s)) as outputs:
            async for output in outputs:
                yield output

    async def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, options: Options | None = None, **settings: Any
    ) -> RequestOutput:
        """All that comes of one prompt. Raises `QuireError`."""
        params, options = _chosen(params, options, settings)
        reception = Reception(prompt, generate_message(prompt, params, options))
        async for _ in receive(self._connection, reception, options.timeout_s):
            pass
        return reception.output()

    async def generate_many(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        options: Options | None = None,
        **settings: Any,
    ) -> list[RequestOutput]:
        """All prompts on one stream; results in their order. The first error is raised when all have ended."""
        outputs = []
        for result in await self.try_many(prompts, params, options, **settings):
            if isinstance(result, QuireError):
                raise result
            outputs.append(result)
        return outputs

    async def try_many(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        options: Options | None = None,
        **settings: Any,
    ) -> list[RequestOutput | QuireError]:
        """As `generate_many`, with the error in the place of each request that failed."""
        receptions, timeout_s = self._receptions(prompts, params, options, settings)
        errors: dict[int, QuireError] = {}
        async for reception, event in Many(self._connection, receptions, timeout_s).events():
            if isinstance(event, QuireError):
                errors[reception.number] = event
        return [errors.get(reception.number) or reception.output() for reception in receptions]

    async def stream_many(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        options: Options | None = None,
        **settings: Any,
    ) -> AsyncGenerator[StreamOutput, None]:
        """Tokens of all prompts as they come, on one stream; `prompt_index` tells whose. The first error ends it."""
        receptions, timeout_s = self._receptions(prompts, params, options, settings)
        async with aclosing(Many(self._connection, receptions, timeout_s).events()) as events:
            async for _, event in events:
                if isinstance(event, QuireError):
                    raise event
                if event is not None:
                    yield event

    async def try_each(
        self, asked: Iterable[tuple[Prompt, SamplingParams, Options]]
    ) -> AsyncGenerator[tuple[int, RequestOutput | QuireError], None]:
        """The number of each request and what came of it, as soon as it has ended, whichever is first. `asked` is read
        as there is room."""
        receptions = (
            Reception(prompt, generate_message(prompt, params, how), number, how.timeout_s)
            for number, (prompt, params, how) in enumerate(asked)
        )
        async with aclosing(Many(self._connection, receptions, None).events()) as events:
            async for reception, event in events:
                if isinstance(event, QuireError):
                    yield reception.number, event
                elif event is None:
                    yield reception.number, reception.output()

    def _receptions(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        options: Options | None,
        settings: dict[str, Any],
    ) -> tuple[list[Reception], float | None]:
        if isinstance(prompts, str):
            raise InvalidRequest("prompts", "is one text", "give a list of prompts")
        if isinstance(params, Sequence) and len(params) != len(prompts):
            problem = f"has {len(params)} entries for {len(prompts)} prompts"
            raise InvalidRequest("params", problem, "give one, or one for each")
        receptions = []
        timeout_s = None
        for number, prompt in enumerate(prompts):
            own = params[number] if isinstance(params, Sequence) else params
            chosen, how = _chosen(own, options, settings)
            if how.request_id:
                how = replace(how, request_id=f"{how.request_id}-{number}")
            timeout_s = how.timeout_s
            receptions.append(Reception(prompt, generate_message(prompt, chosen, how), number))
        return receptions, timeout_s

    # -- all else

    async def cancel(self, request_id: str, *, timeout_s: float = 10.0) -> bool:
        """Ends a request; False: nothing of that id is under way at this gateway."""
        call = self._stub.Cancel(pb.CancelRequest(request_id=request_id), **self._how(timeout_s))
        response = await self._done(call)
        return response.found == pb.FOUND_RUNNING

    async def models(self, *, timeout_s: float = 10.0) -> list[ModelCard]:
        response = await self._done(self._stub.ListModels(pb.ListModelsRequest(), **self._how(timeout_s)))
        return [
            ModelCard(
                name=model.name,
                is_ready=model.ready,
                max_model_len=model.max_model_len,
                vocab_size=model.vocab_size,
                has_chat_template=model.has_chat_template,
                num_replicas=model.num_replicas,
                detail=model.detail,
                is_default=model.is_default,
            )
            for model in response.models
        ]

    async def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Returns when all models are ready. Raises `Unavailable`."""
        loop = asyncio.get_running_loop()
        until, detail = loop.time() + timeout_s, "no model is served"
        while loop.time() < until:
            try:
                models = await self.models(timeout_s=min(5.0, timeout_s))
                if models and all(model.is_ready for model in models):
                    return
                detail = "; ".join(f"{one.name}: {one.detail or 'not ready'}" for one in models) or detail
            except Unavailable as error:
                detail = str(error)
            await asyncio.sleep(0.1)
        raise Unavailable(f"not ready after {timeout_s:g} s: {detail}")

    async def tokenize(self, prompt: Prompt, *, model: str = "", timeout_s: float = 30.0) -> list[int]:
        request = pb.TokenizeRequest(model=model, prompt=prompt_message(prompt))
        return list((await self._done(self._stub.Tokenize(request, **self._how(timeout_s)))).ids)

    async def detokenize(self, ids: Sequence[int], *, model: str = "", timeout_s: float = 30.0) -> str:
        request = pb.DetokenizeRequest(model=model, ids=ids)
        response = await self._done(self._stub.Detokenize(request, **self._how(timeout_s)))
        return response.text

    async def cache_prefix(self, prompt: Prompt, ttl_s: float, *, model: str = "", timeout_s: float = 120.0) -> int:
        """Keeps the full blocks of a prompt for a while; returns how many of its tokens that are."""
        request = pb.CachePrefixRequest(model=model, prompt=prompt_message(prompt), ttl_s=ttl_s)
        response = await self._done(self._stub.CachePrefix(request, **self._how(timeout_s)))
        return response.pinned_tokens

    @property
    def _stub(self) -> InferenceServiceAsyncStub:
        return self._connection.stub()

    def _how(self, timeout_s: float) -> dict[str, Any]:
        return {"timeout": timeout_s, "metadata": self._connection.metadata}

    async def _done(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            failure = self._connection.error(error)
            if isinstance(failure, Unavailable):
                self._connection.turn_to_next()
            raise failure from error


_OPTION_NAMES = frozenset(Options.__slots__)


def _chosen(
    params: SamplingParams | None, options: Options | None, settings: dict[str, Any]
) -> tuple[SamplingParams, Options]:
    """Settings by name on top of what stands in the objects. Raises `InvalidRequest`."""
    own = {name: value for name, value in settings.items() if name in _OPTION_NAMES}
    rest = {name: value for name, value in settings.items() if name not in _OPTION_NAMES}
    unknown = [name for name in rest if name not in SETTING_NAMES]
    if unknown:
        raise InvalidRequest(unknown[0], "is no setting", "see SamplingParams and Options for the names")
    params = params if params is not None else SamplingParams()
    options = options if options is not None else Options()
    return (replace(params, **rest) if rest else params), (replace(options, **own) if own else options)
