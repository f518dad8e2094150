"""The models that a gateway can ask for, and the making of Submit and Pin for them.

It joins what the scheduler says is served with the tokenizers that were loaded here, and owns the hashers that name
blocks: one key per cluster, one salt per tenant. The gateway asks it once per request; it keeps no request.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import blake2b
from typing import TypeAlias

from cluster.errors import InvalidRequest, NotFound, Unavailable
from cluster.gateway.intake import Question, check_length, read_prompt
from cluster.gateway.models import TextModel
from cluster.gateway.work import Work
from cluster.hashing import BlockHasher
from cluster.limits import MAX_MODEL_NAME_CHARS
from cluster.messages import Ids, Pin, Submit
from cluster.sampling import SamplingParams
from cluster.wire.gateways import ServedModel, ServedModels
from protos.quire.v1 import inference_pb2 as pb

log = logging.getLogger(__name__)


OTHER_BYTES = 512 << 10
"""Of a request beside its prompt and its lists of token ids."""

LoadText: TypeAlias = Callable[[str], TextModel]


class Catalogue:
    """Models by name. Deadlines that it writes are on this process's monotonic clock."""

    def __init__(self, models: Mapping[str, TextModel], load: LoadText | None = None, *, default: str = "") -> None:
        self.models = dict(models)
        self.default = default
        self.work = Work()
        self._load = load
        self._loading: dict[str, asyncio.Task[None]] = {}
        self.served: dict[str, ServedModel] = {}
        # What a scheduler served and serves no more. A new one says nothing by what it does not name yet.
        self._unloaded: set[str] = set()
        self._epoch = 0
        self._is_first_word = True
        self._hash_key = b""
        self._hashers: dict[tuple[bytes, str, int], BlockHasher] = {}

    def take_served(self, served: ServedModels) -> None:
        """The scheduler's word on what is served. A model that was loaded meanwhile gets its tokenizer here too."""
        names = {model.name for model in served.models}
        self._unloaded = (self._unloaded | (set() if self._is_first_word else self.served.keys() - names)) - names
        self._is_first_word = False
        self.served = {model.name: model for model in served.models}
        digests = {model.digest for model in served.models}
        self._hashers = {key: hasher for key, hasher in self._hashers.items() if key[0] in digests}
        for name in self.served.keys() - self.models.keys() - self._loading.keys() if self._load is not None else ():
            self._loading[name] = asyncio.create_task(self._load_text(name))

    async def _load_text(self, name: str) -> None:
        assert self._load is not None
        try:
            self.models[name] = await asyncio.to_thread(self._load, name)
            log.info("model %s is served from now on", name)
        except Exception as error:
            log.error("the tokenizer of model %s cannot be loaded: %s: %s", name, type(error).__name__, error)
        finally:
            del self._loading[name]

    def meet(self, epoch: int, hash_key: bytes) -> None:
        """A scheduler was met, a new one or the same again, and says the key by which blocks are named."""
        self._is_first_word |= epoch != self._epoch
        self._epoch = epoch
        if hash_key != self._hash_key:
            self._hash_key = hash_key
            self._hashers.clear()

    @property
    def max_body_bytes(self) -> int:
        """What the longest prompt of any model could take, and what else a request says."""
        models = [self.models[name] for name in self.served if name in self.models]
        return OTHER_BYTES + max((model.max_chars + 8 * model.vocab_size for model in models), default=0)

    def find(self, name: str) -> tuple[ServedModel, TextModel]:
        """The model of this name; without one the default, or the only one. Raises `NotFound`, or `Unavailable` while
        none is served."""
        if len(name) > MAX_MODEL_NAME_CHARS:
            problem = f"has {len(name):,} characters"
            raise InvalidRequest("model", problem, f"give at most {MAX_MODEL_NAME_CHARS:,}")
        if not self.served:
            raise Unavailable("no model is served yet: the scheduler has not been heard of, or has no worker", 1.0)
        if not name:
            name = self.default if self.default in self.served else ""
        if not name and len(self.served) == 1:
            (name,) = self.served
        if not name:
            raise NotFound(f"{len(self.served)} models are served here: {', '.join(sorted(self.served))}; name one")
        served, model = self.served.get(name), self.models.get(name)
        if name in self._loading:
            raise Unavailable(f"model {name} has just been loaded, and its tokenizer is being read", 0.5)
        if served is None and model is not None and name not in self._unloaded:
            raise Unavailable(f"no worker of model {name} is here yet", 1.0)
        if served is None or model is None:
            known = ", ".join(sorted(self.served.keys() & self.models.keys()))
            raise NotFound(f"no model {name!r} is served here; there is {known or 'none'}")
        return served, model

    async def submit(self, tenant: str, client_id: str, question: Question) -> Submit:
        """The request as the scheduler wants it, but without a route. Raises `QuireError` for what is wrong."""
        served, model = self.find(question.model)
        prompt = await read_prompt(question.prompt, model, self.work, tenant)
        longest = _longest(served, model)
        check_length(prompt, longest)
        size = len(prompt) // served.block_size + len(question.params.allowed_token_ids or ())
        question = _with_structure(question, model, prompt)
        hashes, sampling = await self.work.run(tenant, size, self._prepare, tenant, client_id, prompt, question)
        if sampling.structured_outputs is not None:
            await self.work.structures.check(tenant, model, sampling.structured_outputs)
        return Submit(
            request_id=cluster_id(tenant, client_id),
            gateway="",
            route=0,
            model=served.name,
            tenant=tenant,
            prompt=prompt,
            hashes=hashes,
            sampling=sampling,
            priority=question.priority,
            salt=tenant.encode(),
            deadline=None if question.timeout_s is None else time.monotonic() + question.timeout_s,
            digest=served.digest,
            grace_s=question.grace_s,
            look=question.look,
        )

    async def asked_again(self, question: Question, known: Submit) -> Submit:
        """A request that is kept here, as a client asks for it who comes back. Raises `InvalidRequest`."""
        model = self.models[known.model]
        prompt = await read_prompt(question.prompt, model, self.work, known.tenant)
        params, longest = _with_structure(question, model, prompt).params, self.longest(known.model)
        if params.max_tokens is None:
            params = replace(params, max_tokens=known.sampling.max_tokens)
        return replace(
            known,
            model=question.model or known.model,
            prompt=prompt,
            sampling=model.resolve(params, len(prompt), longest, seed=known.sampling.seed or 0),
            priority=question.priority,
        )

    def longest(self, name: str) -> int:
        """How many tokens prompt and answer can have together, of a model that is served or was."""
        served, model = self.served.get(name), self.models[name]
        return model.max_model_len if served is None else _longest(served, model)

    async def tokenize(self, tenant: str, model_name: str, prompt: pb.Prompt) -> tuple[Ids, int]:
        """A prompt's token ids, and the length that its model ends at."""
        served, model = self.find(model_name)
        tokens = await read_prompt(prompt, model, self.work, tenant)
        return tokens, served.max_model_len or model.max_model_len

    def _prepare(
        self, tenant: str, client_id: str, prompt: Ids, question: Question
    ) -> tuple[tuple[bytes, ...], SamplingParams]:
        served, model = self.find(question.model)
        hashes, seed = self._hasher(served, tenant).prompt(prompt), self._seed(tenant, client_id)
        return hashes, model.resolve(question.params, len(prompt), _longest(served, model), seed=seed)

    async def pin(self, tenant: str, model_name: str, prompt: pb.Prompt, ttl_s: float) -> tuple[Pin, int]:
        """A prefix to be kept, and how many of its tokens fill whole blocks."""
        served, model = self.find(model_name)
        tokens = await read_prompt(prompt, model, self.work, tenant)
        check_length(tokens, _longest(served, model))
        hasher = self._hasher(served, tenant)
        hashes = await self.work.run(tenant, len(tokens) // served.block_size, hasher.prompt, tokens)
        if not hashes:
            problem = f"has {len(tokens)} tokens, and only full blocks of {served.block_size} can be kept"
            raise InvalidRequest("prompt", problem, "give a longer prefix")
        pin = Pin(
            request_id=cluster_id(tenant, f"pin-{secrets.token_hex(8)}"),
            gateway="",
            route=0,
            model=served.name,
            tenant=tenant,
            prompt=tokens,
            hashes=hashes,
            until=time.monotonic() + ttl_s,
            salt=tenant.encode(),
            digest=served.digest,
        )
        return pin, len(hashes) * served.block_size

    def _seed(self, tenant: str, client_id: str) -> int:
        """For a request that names none: each has its own, and has it at whichever gateway its client comes back."""
        name = cluster_id(tenant, client_id).encode()
        return int.from_bytes(blake2b(name, key=self._hash_key, digest_size=8, person=b"quire.seed.v1").digest()) >> 1

    def _hasher(self, served: ServedModel, tenant: str) -> BlockHasher:
        key = (served.digest, tenant, served.block_size)
        if key not in self._hashers:
            self._hashers[key] = BlockHasher(self._hash_key, served.digest, tenant.encode(), served.block_size)
        return self._hashers[key]


def _with_structure(question: Question, model: TextModel, prompt: Ids) -> Question:
    """What must be called, as a structure of the answer."""
    if question.prompt.WhichOneof("prompt") != "chat" or not question.prompt.chat.tools:
        return question
    return replace(question, params=model.must_say(question.prompt.chat, question.params, prompt))


def cluster_id(tenant: str, client_id: str) -> str:
    """Ids are unique within a tenant; tenants have no slash in their names."""
    return f"{tenant}/{client_id}"


def _longest(served: ServedModel, model: TextModel) -> int:
    return min(served.max_model_len or model.max_model_len, model.max_model_len)
