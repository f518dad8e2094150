from protos.quire.v1 import common_pb2 as _common_pb2
from protos.quire.v1 import control_pb2 as _control_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GatewayCard(_message.Message):
    __slots__ = ("token_address",)
    TOKEN_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    token_address: str
    def __init__(self, token_address: _Optional[str] = ...) -> None: ...

class FromGateway(_message.Message):
    __slots__ = ("event", "figures", "leaves", "state_goes_on")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    LEAVES_FIELD_NUMBER: _ClassVar[int]
    STATE_GOES_ON_FIELD_NUMBER: _ClassVar[int]
    event: FrontEvent
    figures: Figures
    leaves: bool
    state_goes_on: bool
    def __init__(self, event: _Optional[_Union[FrontEvent, _Mapping[str, object]]] = ..., figures: _Optional[_Union[Figures, _Mapping[str, object]]] = ..., leaves: _Optional[bool] = ..., state_goes_on: _Optional[bool] = ...) -> None: ...

class ToGateway(_message.Message):
    __slots__ = ("notice", "models", "figures")
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    notice: Notice
    models: ServedModels
    figures: int
    def __init__(self, notice: _Optional[_Union[Notice, _Mapping[str, object]]] = ..., models: _Optional[_Union[ServedModels, _Mapping[str, object]]] = ..., figures: _Optional[int] = ...) -> None: ...

class Figures(_message.Message):
    __slots__ = ("number", "families")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FAMILIES_FIELD_NUMBER: _ClassVar[int]
    number: int
    families: _containers.RepeatedCompositeFieldContainer[MetricFamily]
    def __init__(self, number: _Optional[int] = ..., families: _Optional[_Iterable[_Union[MetricFamily, _Mapping[str, object]]]] = ...) -> None: ...

class MetricFamily(_message.Message):
    __slots__ = ("name", "kind", "help", "samples")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    HELP_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    help: str
    samples: _containers.RepeatedCompositeFieldContainer[MetricSample]
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., help: _Optional[str] = ..., samples: _Optional[_Iterable[_Union[MetricSample, _Mapping[str, object]]]] = ...) -> None: ...

class MetricSample(_message.Message):
    __slots__ = ("suffix", "labels", "value")
    SUFFIX_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    suffix: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    value: float
    def __init__(self, suffix: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., value: _Optional[float] = ...) -> None: ...

class FrontEvent(_message.Message):
    __slots__ = ("submit", "cancel", "stop_at", "sealed", "closed", "adopt", "pin", "state", "claim", "find")
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    STOP_AT_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    ADOPT_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CLAIM_FIELD_NUMBER: _ClassVar[int]
    FIND_FIELD_NUMBER: _ClassVar[int]
    submit: Submit
    cancel: CancelEvent
    stop_at: StopAtEvent
    sealed: SealedEvent
    closed: ClosedEvent
    adopt: AdoptEvent
    pin: Pin
    state: GatewayState
    claim: ClaimEvent
    find: FindEvent
    def __init__(self, submit: _Optional[_Union[Submit, _Mapping[str, object]]] = ..., cancel: _Optional[_Union[CancelEvent, _Mapping[str, object]]] = ..., stop_at: _Optional[_Union[StopAtEvent, _Mapping[str, object]]] = ..., sealed: _Optional[_Union[SealedEvent, _Mapping[str, object]]] = ..., closed: _Optional[_Union[ClosedEvent, _Mapping[str, object]]] = ..., adopt: _Optional[_Union[AdoptEvent, _Mapping[str, object]]] = ..., pin: _Optional[_Union[Pin, _Mapping[str, object]]] = ..., state: _Optional[_Union[GatewayState, _Mapping[str, object]]] = ..., claim: _Optional[_Union[ClaimEvent, _Mapping[str, object]]] = ..., find: _Optional[_Union[FindEvent, _Mapping[str, object]]] = ...) -> None: ...

class ServedModels(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ServedModel]
    def __init__(self, models: _Optional[_Iterable[_Union[ServedModel, _Mapping[str, object]]]] = ...) -> None: ...

class ServedModel(_message.Message):
    __slots__ = ("name", "ready", "detail", "num_replicas", "block_size", "max_model_len", "digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    NUM_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    ready: bool
    detail: str
    num_replicas: int
    block_size: int
    max_model_len: int
    digest: bytes
    def __init__(self, name: _Optional[str] = ..., ready: _Optional[bool] = ..., detail: _Optional[str] = ..., num_replicas: _Optional[int] = ..., block_size: _Optional[int] = ..., max_model_len: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("request_id", "gateway", "route", "model", "tenant", "prompt", "hashes", "sampling", "priority", "salt", "timeout_s", "trace", "digest", "grace_s", "look")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    GRACE_S_FIELD_NUMBER: _ClassVar[int]
    LOOK_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    gateway: str
    route: int
    model: str
    tenant: str
    prompt: bytes
    hashes: bytes
    sampling: _control_pb2.ResolvedSampling
    priority: int
    salt: bytes
    timeout_s: float
    trace: str
    digest: bytes
    grace_s: float
    look: str
    def __init__(self, request_id: _Optional[str] = ..., gateway: _Optional[str] = ..., route: _Optional[int] = ..., model: _Optional[str] = ..., tenant: _Optional[str] = ..., prompt: _Optional[bytes] = ..., hashes: _Optional[bytes] = ..., sampling: _Optional[_Union[_control_pb2.ResolvedSampling, _Mapping[str, object]]] = ..., priority: _Optional[int] = ..., salt: _Optional[bytes] = ..., timeout_s: _Optional[float] = ..., trace: _Optional[str] = ..., digest: _Optional[bytes] = ..., grace_s: _Optional[float] = ..., look: _Optional[str] = ...) -> None: ...

class CancelEvent(_message.Message):
    __slots__ = ("request_id", "gateway", "route", "code", "detail")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    gateway: str
    route: int
    code: str
    detail: str
    def __init__(self, request_id: _Optional[str] = ..., gateway: _Optional[str] = ..., route: _Optional[int] = ..., code: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class StopAtEvent(_message.Message):
    __slots__ = ("request_id", "index", "num_outputs")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NUM_OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    index: int
    num_outputs: int
    def __init__(self, request_id: _Optional[str] = ..., index: _Optional[int] = ..., num_outputs: _Optional[int] = ...) -> None: ...

class SealedEvent(_message.Message):
    __slots__ = ("request_id", "attempt", "outputs", "finished", "gateway", "route")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    outputs: _containers.RepeatedScalarFieldContainer[bytes]
    finished: _containers.RepeatedScalarFieldContainer[_control_pb2.StopReason]
    gateway: str
    route: int
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ..., outputs: _Optional[_Iterable[bytes]] = ..., finished: _Optional[_Iterable[_Union[_control_pb2.StopReason, str]]] = ..., gateway: _Optional[str] = ..., route: _Optional[int] = ...) -> None: ...

class ClosedEvent(_message.Message):
    __slots__ = ("request_id", "gateway", "route")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    gateway: str
    route: int
    def __init__(self, request_id: _Optional[str] = ..., gateway: _Optional[str] = ..., route: _Optional[int] = ...) -> None: ...

class AdoptEvent(_message.Message):
    __slots__ = ("submit",)
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    submit: Submit
    def __init__(self, submit: _Optional[_Union[Submit, _Mapping[str, object]]] = ...) -> None: ...

class FindEvent(_message.Message):
    __slots__ = ("request_id", "gateway", "route")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    gateway: str
    route: int
    def __init__(self, request_id: _Optional[str] = ..., gateway: _Optional[str] = ..., route: _Optional[int] = ...) -> None: ...

class ClaimEvent(_message.Message):
    __slots__ = ("request_id", "gateway", "route", "number")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    gateway: str
    route: int
    number: int
    def __init__(self, request_id: _Optional[str] = ..., gateway: _Optional[str] = ..., route: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class Pin(_message.Message):
    __slots__ = ("request_id", "gateway", "route", "model", "tenant", "prompt", "hashes", "ttl_s", "salt", "digest")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    gateway: str
    route: int
    model: str
    tenant: str
    prompt: bytes
    hashes: bytes
    ttl_s: float
    salt: bytes
    digest: bytes
    def __init__(self, request_id: _Optional[str] = ..., gateway: _Optional[str] = ..., route: _Optional[int] = ..., model: _Optional[str] = ..., tenant: _Optional[str] = ..., prompt: _Optional[bytes] = ..., hashes: _Optional[bytes] = ..., ttl_s: _Optional[float] = ..., salt: _Optional[bytes] = ..., digest: _Optional[bytes] = ...) -> None: ...

class GatewayState(_message.Message):
    __slots__ = ("gateway", "requests")
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    gateway: str
    requests: _containers.RepeatedCompositeFieldContainer[OpenRequest]
    def __init__(self, gateway: _Optional[str] = ..., requests: _Optional[_Iterable[_Union[OpenRequest, _Mapping[str, object]]]] = ...) -> None: ...

class OpenRequest(_message.Message):
    __slots__ = ("submit", "outputs", "finished", "attempt", "turn")
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    submit: Submit
    outputs: _containers.RepeatedScalarFieldContainer[bytes]
    finished: _containers.RepeatedScalarFieldContainer[_control_pb2.StopReason]
    attempt: int
    turn: int
    def __init__(self, submit: _Optional[_Union[Submit, _Mapping[str, object]]] = ..., outputs: _Optional[_Iterable[bytes]] = ..., finished: _Optional[_Iterable[_Union[_control_pb2.StopReason, str]]] = ..., attempt: _Optional[int] = ..., turn: _Optional[int] = ...) -> None: ...

class Notice(_message.Message):
    __slots__ = ("accepted", "started", "refused", "seal", "replay", "done", "hand_over", "found")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    REPLAY_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    HAND_OVER_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    accepted: AcceptedNotice
    started: StartedNotice
    refused: RefusedNotice
    seal: SealNotice
    replay: ReplayNotice
    done: DoneNotice
    hand_over: HandOverNotice
    found: FoundNotice
    def __init__(self, accepted: _Optional[_Union[AcceptedNotice, _Mapping[str, object]]] = ..., started: _Optional[_Union[StartedNotice, _Mapping[str, object]]] = ..., refused: _Optional[_Union[RefusedNotice, _Mapping[str, object]]] = ..., seal: _Optional[_Union[SealNotice, _Mapping[str, object]]] = ..., replay: _Optional[_Union[ReplayNotice, _Mapping[str, object]]] = ..., done: _Optional[_Union[DoneNotice, _Mapping[str, object]]] = ..., hand_over: _Optional[_Union[HandOverNotice, _Mapping[str, object]]] = ..., found: _Optional[_Union[FoundNotice, _Mapping[str, object]]] = ...) -> None: ...

class AcceptedNotice(_message.Message):
    __slots__ = ("gateway", "route", "request_id", "place", "reason", "turn", "claim")
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    CLAIM_FIELD_NUMBER: _ClassVar[int]
    gateway: str
    route: int
    request_id: str
    place: int
    reason: str
    turn: int
    claim: int
    def __init__(self, gateway: _Optional[str] = ..., route: _Optional[int] = ..., request_id: _Optional[str] = ..., place: _Optional[int] = ..., reason: _Optional[str] = ..., turn: _Optional[int] = ..., claim: _Optional[int] = ...) -> None: ...

class StartedNotice(_message.Message):
    __slots__ = ("gateway", "route", "request_id", "cached_tokens", "replica")
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    gateway: str
    route: int
    request_id: str
    cached_tokens: int
    replica: str
    def __init__(self, gateway: _Optional[str] = ..., route: _Optional[int] = ..., request_id: _Optional[str] = ..., cached_tokens: _Optional[int] = ..., replica: _Optional[str] = ...) -> None: ...

class RefusedNotice(_message.Message):
    __slots__ = ("gateway", "route", "request_id", "code", "detail", "retry_after_s", "field")
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    gateway: str
    route: int
    request_id: str
    code: str
    detail: str
    retry_after_s: float
    field: str
    def __init__(self, gateway: _Optional[str] = ..., route: _Optional[int] = ..., request_id: _Optional[str] = ..., code: _Optional[str] = ..., detail: _Optional[str] = ..., retry_after_s: _Optional[float] = ..., field: _Optional[str] = ...) -> None: ...

class SealNotice(_message.Message):
    __slots__ = ("gateway", "route", "request_id", "attempt", "digest")
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    gateway: str
    route: int
    request_id: str
    attempt: int
    digest: bytes
    def __init__(self, gateway: _Optional[str] = ..., route: _Optional[int] = ..., request_id: _Optional[str] = ..., attempt: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class HandOverNotice(_message.Message):
    __slots__ = ("gateway", "route", "request_id")
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    gateway: str
    route: int
    request_id: str
    def __init__(self, gateway: _Optional[str] = ..., route: _Optional[int] = ..., request_id: _Optional[str] = ...) -> None: ...

class FoundNotice(_message.Message):
    __slots__ = ("gateway", "route", "submit", "rest_s")
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    REST_S_FIELD_NUMBER: _ClassVar[int]
    gateway: str
    route: int
    submit: Submit
    rest_s: float
    def __init__(self, gateway: _Optional[str] = ..., route: _Optional[int] = ..., submit: _Optional[_Union[Submit, _Mapping[str, object]]] = ..., rest_s: _Optional[float] = ...) -> None: ...

class ReplayNotice(_message.Message):
    __slots__ = ("gateway", "tokens")
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    gateway: str
    tokens: TokenBatch
    def __init__(self, gateway: _Optional[str] = ..., tokens: _Optional[_Union[TokenBatch, _Mapping[str, object]]] = ...) -> None: ...

class DoneNotice(_message.Message):
    __slots__ = ("gateway", "route", "request_id", "cached_tokens", "preemptions", "queue_seconds", "device_block_seconds", "host_block_seconds")
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BLOCK_SECONDS_FIELD_NUMBER: _ClassVar[int]
    HOST_BLOCK_SECONDS_FIELD_NUMBER: _ClassVar[int]
    gateway: str
    route: int
    request_id: str
    cached_tokens: int
    preemptions: int
    queue_seconds: float
    device_block_seconds: float
    host_block_seconds: float
    def __init__(self, gateway: _Optional[str] = ..., route: _Optional[int] = ..., request_id: _Optional[str] = ..., cached_tokens: _Optional[int] = ..., preemptions: _Optional[int] = ..., queue_seconds: _Optional[float] = ..., device_block_seconds: _Optional[float] = ..., host_block_seconds: _Optional[float] = ...) -> None: ...

class TokenBatch(_message.Message):
    __slots__ = ("routes", "indexes", "attempts", "positions", "counts", "ids", "reasons", "extras")
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    INDEXES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    EXTRAS_FIELD_NUMBER: _ClassVar[int]
    routes: bytes
    indexes: bytes
    attempts: bytes
    positions: bytes
    counts: bytes
    ids: bytes
    reasons: bytes
    extras: _containers.RepeatedCompositeFieldContainer[TokenExtra]
    def __init__(self, routes: _Optional[bytes] = ..., indexes: _Optional[bytes] = ..., attempts: _Optional[bytes] = ..., positions: _Optional[bytes] = ..., counts: _Optional[bytes] = ..., ids: _Optional[bytes] = ..., reasons: _Optional[bytes] = ..., extras: _Optional[_Iterable[_Union[TokenExtra, _Mapping[str, object]]]] = ...) -> None: ...

class TokenExtra(_message.Message):
    __slots__ = ("entry", "logprobs", "prompt_logprobs", "detail", "score")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    entry: int
    logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.Logprob]
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.PromptLogprob]
    detail: str
    score: float
    def __init__(self, entry: _Optional[int] = ..., logprobs: _Optional[_Iterable[_Union[_common_pb2.Logprob, _Mapping[str, object]]]] = ..., prompt_logprobs: _Optional[_Iterable[_Union[_common_pb2.PromptLogprob, _Mapping[str, object]]]] = ..., detail: _Optional[str] = ..., score: _Optional[float] = ...) -> None: ...
