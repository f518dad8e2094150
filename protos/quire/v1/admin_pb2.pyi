from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PoolKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POOL_KIND_UNSPECIFIED: _ClassVar[PoolKind]
    POOL_KIND_DEVICE: _ClassVar[PoolKind]
    POOL_KIND_HOST: _ClassVar[PoolKind]

class RequestState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REQUEST_STATE_UNSPECIFIED: _ClassVar[RequestState]
    REQUEST_STATE_QUEUED: _ClassVar[RequestState]
    REQUEST_STATE_PARKED: _ClassVar[RequestState]
    REQUEST_STATE_RUNNING: _ClassVar[RequestState]
    REQUEST_STATE_STOPPING: _ClassVar[RequestState]
    REQUEST_STATE_SEALING: _ClassVar[RequestState]
    REQUEST_STATE_SWAPPED: _ClassVar[RequestState]
    REQUEST_STATE_ENDED: _ClassVar[RequestState]

class BlockState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BLOCK_STATE_UNSPECIFIED: _ClassVar[BlockState]
    BLOCK_STATE_FREE: _ClassVar[BlockState]
    BLOCK_STATE_HELD: _ClassVar[BlockState]
    BLOCK_STATE_SHARED: _ClassVar[BlockState]
    BLOCK_STATE_CACHED: _ClassVar[BlockState]
    BLOCK_STATE_MOVING: _ClassVar[BlockState]
    BLOCK_STATE_QUARANTINED: _ClassVar[BlockState]
POOL_KIND_UNSPECIFIED: PoolKind
POOL_KIND_DEVICE: PoolKind
POOL_KIND_HOST: PoolKind
REQUEST_STATE_UNSPECIFIED: RequestState
REQUEST_STATE_QUEUED: RequestState
REQUEST_STATE_PARKED: RequestState
REQUEST_STATE_RUNNING: RequestState
REQUEST_STATE_STOPPING: RequestState
REQUEST_STATE_SEALING: RequestState
REQUEST_STATE_SWAPPED: RequestState
REQUEST_STATE_ENDED: RequestState
BLOCK_STATE_UNSPECIFIED: BlockState
BLOCK_STATE_FREE: BlockState
BLOCK_STATE_HELD: BlockState
BLOCK_STATE_SHARED: BlockState
BLOCK_STATE_CACHED: BlockState
BLOCK_STATE_MOVING: BlockState
BLOCK_STATE_QUARANTINED: BlockState

class GetClusterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetClusterResponse(_message.Message):
    __slots__ = ("epoch", "version", "uptime_s", "num_running", "num_waiting", "num_workers", "num_gateways", "counters", "notes", "gateways")
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    NUM_WORKERS_FIELD_NUMBER: _ClassVar[int]
    NUM_GATEWAYS_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    GATEWAYS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    version: str
    uptime_s: float
    num_running: int
    num_waiting: int
    num_workers: int
    num_gateways: int
    counters: _containers.ScalarMap[str, int]
    notes: _containers.RepeatedCompositeFieldContainer[Note]
    gateways: _containers.RepeatedCompositeFieldContainer[GatewayLink]
    def __init__(self, epoch: _Optional[int] = ..., version: _Optional[str] = ..., uptime_s: _Optional[float] = ..., num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., num_workers: _Optional[int] = ..., num_gateways: _Optional[int] = ..., counters: _Optional[_Mapping[str, int]] = ..., notes: _Optional[_Iterable[_Union[Note, _Mapping[str, object]]]] = ..., gateways: _Optional[_Iterable[_Union[GatewayLink, _Mapping[str, object]]]] = ...) -> None: ...

class GatewayLink(_message.Message):
    __slots__ = ("name", "address", "connected")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    connected: bool
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., connected: _Optional[bool] = ...) -> None: ...

class Note(_message.Message):
    __slots__ = ("number", "age_s", "kind", "subject", "why")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    number: int
    age_s: float
    kind: str
    subject: str
    why: str
    def __init__(self, number: _Optional[int] = ..., age_s: _Optional[float] = ..., kind: _Optional[str] = ..., subject: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class ListWorkersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListWorkersResponse(_message.Message):
    __slots__ = ("workers", "missing")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[Worker]
    missing: _containers.RepeatedCompositeFieldContainer[MissingWorker]
    def __init__(self, workers: _Optional[_Iterable[_Union[Worker, _Mapping[str, object]]]] = ..., missing: _Optional[_Iterable[_Union[MissingWorker, _Mapping[str, object]]]] = ...) -> None: ...

class MissingWorker(_message.Message):
    __slots__ = ("name", "model")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    model: str
    def __init__(self, name: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class Worker(_message.Message):
    __slots__ = ("name", "incarnation", "node", "model", "draining", "num_sequences", "max_batch", "num_blocks", "num_free", "steps", "step_s", "dry_leases", "prefill_waiting", "silent_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    NUM_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_FREE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_S_FIELD_NUMBER: _ClassVar[int]
    DRY_LEASES_FIELD_NUMBER: _ClassVar[int]
    PREFILL_WAITING_FIELD_NUMBER: _ClassVar[int]
    SILENT_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    incarnation: int
    node: str
    model: str
    draining: bool
    num_sequences: int
    max_batch: int
    num_blocks: int
    num_free: int
    steps: int
    step_s: float
    dry_leases: int
    prefill_waiting: int
    silent_s: float
    def __init__(self, name: _Optional[str] = ..., incarnation: _Optional[int] = ..., node: _Optional[str] = ..., model: _Optional[str] = ..., draining: _Optional[bool] = ..., num_sequences: _Optional[int] = ..., max_batch: _Optional[int] = ..., num_blocks: _Optional[int] = ..., num_free: _Optional[int] = ..., steps: _Optional[int] = ..., step_s: _Optional[float] = ..., dry_leases: _Optional[int] = ..., prefill_waiting: _Optional[int] = ..., silent_s: _Optional[float] = ...) -> None: ...

class ListPoolsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPoolsResponse(_message.Message):
    __slots__ = ("pools",)
    POOLS_FIELD_NUMBER: _ClassVar[int]
    pools: _containers.RepeatedCompositeFieldContainer[Pool]
    def __init__(self, pools: _Optional[_Iterable[_Union[Pool, _Mapping[str, object]]]] = ...) -> None: ...

class Pool(_message.Message):
    __slots__ = ("name", "kind", "node", "block_size", "block_bytes", "num_blocks", "num_free", "num_held", "num_cached", "num_moving", "num_quarantined", "num_shared", "num_pinned")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_FREE_FIELD_NUMBER: _ClassVar[int]
    NUM_HELD_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_FIELD_NUMBER: _ClassVar[int]
    NUM_MOVING_FIELD_NUMBER: _ClassVar[int]
    NUM_QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    NUM_SHARED_FIELD_NUMBER: _ClassVar[int]
    NUM_PINNED_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: PoolKind
    node: str
    block_size: int
    block_bytes: int
    num_blocks: int
    num_free: int
    num_held: int
    num_cached: int
    num_moving: int
    num_quarantined: int
    num_shared: int
    num_pinned: int
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[PoolKind, str]] = ..., node: _Optional[str] = ..., block_size: _Optional[int] = ..., block_bytes: _Optional[int] = ..., num_blocks: _Optional[int] = ..., num_free: _Optional[int] = ..., num_held: _Optional[int] = ..., num_cached: _Optional[int] = ..., num_moving: _Optional[int] = ..., num_quarantined: _Optional[int] = ..., num_shared: _Optional[int] = ..., num_pinned: _Optional[int] = ...) -> None: ...

class ListRequestsRequest(_message.Message):
    __slots__ = ("states", "tenant", "limit")
    STATES_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    states: _containers.RepeatedScalarFieldContainer[RequestState]
    tenant: str
    limit: int
    def __init__(self, states: _Optional[_Iterable[_Union[RequestState, str]]] = ..., tenant: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class ListRequestsResponse(_message.Message):
    __slots__ = ("requests", "num_left_out")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    NUM_LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[RequestSummary]
    num_left_out: int
    def __init__(self, requests: _Optional[_Iterable[_Union[RequestSummary, _Mapping[str, object]]]] = ..., num_left_out: _Optional[int] = ...) -> None: ...

class RequestSummary(_message.Message):
    __slots__ = ("request_id", "tenant", "model", "state", "priority", "prompt_tokens", "output_tokens", "num_sequences", "worker", "gateway", "preemptions", "queue_s", "num_blocks", "reason")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tenant: str
    model: str
    state: RequestState
    priority: int
    prompt_tokens: int
    output_tokens: int
    num_sequences: int
    worker: str
    gateway: str
    preemptions: int
    queue_s: float
    num_blocks: int
    reason: str
    def __init__(self, request_id: _Optional[str] = ..., tenant: _Optional[str] = ..., model: _Optional[str] = ..., state: _Optional[_Union[RequestState, str]] = ..., priority: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., num_sequences: _Optional[int] = ..., worker: _Optional[str] = ..., gateway: _Optional[str] = ..., preemptions: _Optional[int] = ..., queue_s: _Optional[float] = ..., num_blocks: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class DescribeRequestRequest(_message.Message):
    __slots__ = ("request_id", "tenant")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tenant: str
    def __init__(self, request_id: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class DescribeRequestResponse(_message.Message):
    __slots__ = ("request", "attempt", "sequences", "block_seconds", "cached_tokens")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request: RequestSummary
    attempt: int
    sequences: _containers.RepeatedCompositeFieldContainer[SequenceTable]
    block_seconds: float
    cached_tokens: int
    def __init__(self, request: _Optional[_Union[RequestSummary, _Mapping[str, object]]] = ..., attempt: _Optional[int] = ..., sequences: _Optional[_Iterable[_Union[SequenceTable, _Mapping[str, object]]]] = ..., block_seconds: _Optional[float] = ..., cached_tokens: _Optional[int] = ...) -> None: ...

class SequenceTable(_message.Message):
    __slots__ = ("index", "position", "length", "lease_end", "pool", "blocks", "holders", "host_blocks", "host_pool")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    LEASE_END_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    HOST_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    HOST_POOL_FIELD_NUMBER: _ClassVar[int]
    index: int
    position: int
    length: int
    lease_end: int
    pool: str
    blocks: _containers.RepeatedScalarFieldContainer[int]
    holders: _containers.RepeatedScalarFieldContainer[int]
    host_blocks: _containers.RepeatedScalarFieldContainer[int]
    host_pool: str
    def __init__(self, index: _Optional[int] = ..., position: _Optional[int] = ..., length: _Optional[int] = ..., lease_end: _Optional[int] = ..., pool: _Optional[str] = ..., blocks: _Optional[_Iterable[int]] = ..., holders: _Optional[_Iterable[int]] = ..., host_blocks: _Optional[_Iterable[int]] = ..., host_pool: _Optional[str] = ...) -> None: ...

class WatchBlocksRequest(_message.Message):
    __slots__ = ("pools", "with_owners", "interval_s")
    POOLS_FIELD_NUMBER: _ClassVar[int]
    WITH_OWNERS_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    pools: _containers.RepeatedScalarFieldContainer[str]
    with_owners: bool
    interval_s: float
    def __init__(self, pools: _Optional[_Iterable[str]] = ..., with_owners: _Optional[bool] = ..., interval_s: _Optional[float] = ...) -> None: ...

class WatchBlocksResponse(_message.Message):
    __slots__ = ("pools", "gone", "number")
    POOLS_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    pools: _containers.RepeatedCompositeFieldContainer[PoolMap]
    gone: _containers.RepeatedScalarFieldContainer[str]
    number: int
    def __init__(self, pools: _Optional[_Iterable[_Union[PoolMap, _Mapping[str, object]]]] = ..., gone: _Optional[_Iterable[str]] = ..., number: _Optional[int] = ...) -> None: ...

class PoolMap(_message.Message):
    __slots__ = ("pool", "incarnation", "whole", "num_blocks", "states", "blocks", "owners", "requests")
    POOL_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    OWNERS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    pool: str
    incarnation: int
    whole: bool
    num_blocks: int
    states: bytes
    blocks: _containers.RepeatedScalarFieldContainer[int]
    owners: _containers.RepeatedScalarFieldContainer[int]
    requests: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, pool: _Optional[str] = ..., incarnation: _Optional[int] = ..., whole: _Optional[bool] = ..., num_blocks: _Optional[int] = ..., states: _Optional[bytes] = ..., blocks: _Optional[_Iterable[int]] = ..., owners: _Optional[_Iterable[int]] = ..., requests: _Optional[_Iterable[str]] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("worker", "undo")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    UNDO_FIELD_NUMBER: _ClassVar[int]
    worker: str
    undo: bool
    def __init__(self, worker: _Optional[str] = ..., undo: _Optional[bool] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("num_moving",)
    NUM_MOVING_FIELD_NUMBER: _ClassVar[int]
    num_moving: int
    def __init__(self, num_moving: _Optional[int] = ...) -> None: ...

class CloseModelRequest(_message.Message):
    __slots__ = ("model", "undo")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    UNDO_FIELD_NUMBER: _ClassVar[int]
    model: str
    undo: bool
    def __init__(self, model: _Optional[str] = ..., undo: _Optional[bool] = ...) -> None: ...

class CloseModelResponse(_message.Message):
    __slots__ = ("num_open",)
    NUM_OPEN_FIELD_NUMBER: _ClassVar[int]
    num_open: int
    def __init__(self, num_open: _Optional[int] = ...) -> None: ...

class GetUsageRequest(_message.Message):
    __slots__ = ("tenant",)
    TENANT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    def __init__(self, tenant: _Optional[str] = ...) -> None: ...

class GetUsageResponse(_message.Message):
    __slots__ = ("tenants",)
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    tenants: _containers.RepeatedCompositeFieldContainer[TenantUsage]
    def __init__(self, tenants: _Optional[_Iterable[_Union[TenantUsage, _Mapping[str, object]]]] = ...) -> None: ...

class TenantUsage(_message.Message):
    __slots__ = ("tenant", "num_requests", "prompt_tokens", "cached_tokens", "output_tokens", "device_block_seconds", "host_block_seconds")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NUM_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BLOCK_SECONDS_FIELD_NUMBER: _ClassVar[int]
    HOST_BLOCK_SECONDS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    num_requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    device_block_seconds: float
    host_block_seconds: float
    def __init__(self, tenant: _Optional[str] = ..., num_requests: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., device_block_seconds: _Optional[float] = ..., host_block_seconds: _Optional[float] = ...) -> None: ...
