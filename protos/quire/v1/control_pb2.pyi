from protos.quire.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Road(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROAD_UNSPECIFIED: _ClassVar[Road]
    ROAD_WRITE: _ClassVar[Road]
    ROAD_READ: _ClassVar[Road]

class StopReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STOP_REASON_UNSPECIFIED: _ClassVar[StopReason]
    STOP_REASON_STOP: _ClassVar[StopReason]
    STOP_REASON_LENGTH: _ClassVar[StopReason]
    STOP_REASON_DROPPED: _ClassVar[StopReason]
    STOP_REASON_FAILED: _ClassVar[StopReason]
ROAD_UNSPECIFIED: Road
ROAD_WRITE: Road
ROAD_READ: Road
STOP_REASON_UNSPECIFIED: StopReason
STOP_REASON_STOP: StopReason
STOP_REASON_LENGTH: StopReason
STOP_REASON_DROPPED: StopReason
STOP_REASON_FAILED: StopReason

class Joining(_message.Message):
    __slots__ = ("replica", "host_pool", "transfer_address")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    HOST_POOL_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    replica: ReplicaJoined
    host_pool: HostPoolJoined
    transfer_address: str
    def __init__(self, replica: _Optional[_Union[ReplicaJoined, _Mapping[str, object]]] = ..., host_pool: _Optional[_Union[HostPoolJoined, _Mapping[str, object]]] = ..., transfer_address: _Optional[str] = ...) -> None: ...

class ToScheduler(_message.Message):
    __slots__ = ("result", "state", "settled")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    result: Result
    state: ReplicaState
    settled: HostPoolSettled
    def __init__(self, result: _Optional[_Union[Result, _Mapping[str, object]]] = ..., state: _Optional[_Union[ReplicaState, _Mapping[str, object]]] = ..., settled: _Optional[_Union[HostPoolSettled, _Mapping[str, object]]] = ...) -> None: ...

class FromScheduler(_message.Message):
    __slots__ = ("plan", "directory", "give_up")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    GIVE_UP_FIELD_NUMBER: _ClassVar[int]
    plan: Plan
    directory: Directory
    give_up: GiveUp
    def __init__(self, plan: _Optional[_Union[Plan, _Mapping[str, object]]] = ..., directory: _Optional[_Union[Directory, _Mapping[str, object]]] = ..., give_up: _Optional[_Union[GiveUp, _Mapping[str, object]]] = ...) -> None: ...

class Directory(_message.Message):
    __slots__ = ("entries", "is_whole")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    IS_WHOLE_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[DirectoryEntry]
    is_whole: bool
    def __init__(self, entries: _Optional[_Iterable[_Union[DirectoryEntry, _Mapping[str, object]]]] = ..., is_whole: _Optional[bool] = ...) -> None: ...

class DirectoryEntry(_message.Message):
    __slots__ = ("name", "address")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("replica", "incarnation", "epoch", "number", "ahead", "result", "extends", "starts", "drops", "revokes", "reroutes", "copies", "transfers", "aborts", "clears")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    EXTENDS_FIELD_NUMBER: _ClassVar[int]
    STARTS_FIELD_NUMBER: _ClassVar[int]
    DROPS_FIELD_NUMBER: _ClassVar[int]
    REVOKES_FIELD_NUMBER: _ClassVar[int]
    REROUTES_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    ABORTS_FIELD_NUMBER: _ClassVar[int]
    CLEARS_FIELD_NUMBER: _ClassVar[int]
    replica: str
    incarnation: int
    epoch: int
    number: int
    ahead: int
    result: int
    extends: Extends
    starts: _containers.RepeatedCompositeFieldContainer[Start]
    drops: bytes
    revokes: _containers.RepeatedCompositeFieldContainer[Revoke]
    reroutes: _containers.RepeatedCompositeFieldContainer[Reroute]
    copies: _containers.RepeatedCompositeFieldContainer[Copy]
    transfers: _containers.RepeatedCompositeFieldContainer[Transfer]
    aborts: _containers.RepeatedScalarFieldContainer[int]
    clears: bytes
    def __init__(self, replica: _Optional[str] = ..., incarnation: _Optional[int] = ..., epoch: _Optional[int] = ..., number: _Optional[int] = ..., ahead: _Optional[int] = ..., result: _Optional[int] = ..., extends: _Optional[_Union[Extends, _Mapping[str, object]]] = ..., starts: _Optional[_Iterable[_Union[Start, _Mapping[str, object]]]] = ..., drops: _Optional[bytes] = ..., revokes: _Optional[_Iterable[_Union[Revoke, _Mapping[str, object]]]] = ..., reroutes: _Optional[_Iterable[_Union[Reroute, _Mapping[str, object]]]] = ..., copies: _Optional[_Iterable[_Union[Copy, _Mapping[str, object]]]] = ..., transfers: _Optional[_Iterable[_Union[Transfer, _Mapping[str, object]]]] = ..., aborts: _Optional[_Iterable[int]] = ..., clears: _Optional[bytes] = ...) -> None: ...

class Extends(_message.Message):
    __slots__ = ("seqs", "lease_ends", "firsts", "counts", "blocks")
    SEQS_FIELD_NUMBER: _ClassVar[int]
    LEASE_ENDS_FIELD_NUMBER: _ClassVar[int]
    FIRSTS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    seqs: bytes
    lease_ends: bytes
    firsts: bytes
    counts: bytes
    blocks: bytes
    def __init__(self, seqs: _Optional[bytes] = ..., lease_ends: _Optional[bytes] = ..., firsts: _Optional[bytes] = ..., counts: _Optional[bytes] = ..., blocks: _Optional[bytes] = ...) -> None: ...

class Start(_message.Message):
    __slots__ = ("seq", "request_id", "index", "attempt", "gateway", "route", "tokens", "num_prompt", "position", "table", "lease_end", "precedence", "sampling", "salt", "chain", "forks", "beams", "trace", "after", "grace_s")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    LEASE_END_FIELD_NUMBER: _ClassVar[int]
    PRECEDENCE_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    FORKS_FIELD_NUMBER: _ClassVar[int]
    BEAMS_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    GRACE_S_FIELD_NUMBER: _ClassVar[int]
    seq: int
    request_id: str
    index: int
    attempt: int
    gateway: str
    route: int
    tokens: bytes
    num_prompt: int
    position: int
    table: bytes
    lease_end: int
    precedence: int
    sampling: ResolvedSampling
    salt: bytes
    chain: bytes
    forks: _containers.RepeatedCompositeFieldContainer[Fork]
    beams: Beams
    trace: str
    after: int
    grace_s: float
    def __init__(self, seq: _Optional[int] = ..., request_id: _Optional[str] = ..., index: _Optional[int] = ..., attempt: _Optional[int] = ..., gateway: _Optional[str] = ..., route: _Optional[int] = ..., tokens: _Optional[bytes] = ..., num_prompt: _Optional[int] = ..., position: _Optional[int] = ..., table: _Optional[bytes] = ..., lease_end: _Optional[int] = ..., precedence: _Optional[int] = ..., sampling: _Optional[_Union[ResolvedSampling, _Mapping[str, object]]] = ..., salt: _Optional[bytes] = ..., chain: _Optional[bytes] = ..., forks: _Optional[_Iterable[_Union[Fork, _Mapping[str, object]]]] = ..., beams: _Optional[_Union[Beams, _Mapping[str, object]]] = ..., trace: _Optional[str] = ..., after: _Optional[int] = ..., grace_s: _Optional[float] = ...) -> None: ...

class ResolvedSampling(_message.Message):
    __slots__ = ("sampling", "eos_token_ids", "structure")
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    STRUCTURE_FIELD_NUMBER: _ClassVar[int]
    sampling: _common_pb2.Sampling
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    structure: Structure
    def __init__(self, sampling: _Optional[_Union[_common_pb2.Sampling, _Mapping[str, object]]] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., structure: _Optional[_Union[Structure, _Mapping[str, object]]] = ...) -> None: ...

class Structure(_message.Message):
    __slots__ = ("kind", "text")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    text: str
    def __init__(self, kind: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class Fork(_message.Message):
    __slots__ = ("seq", "index", "table", "lease_end", "outputs")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    LEASE_END_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    seq: int
    index: int
    table: bytes
    lease_end: int
    outputs: bytes
    def __init__(self, seq: _Optional[int] = ..., index: _Optional[int] = ..., table: _Optional[bytes] = ..., lease_end: _Optional[int] = ..., outputs: _Optional[bytes] = ...) -> None: ...

class Beams(_message.Message):
    __slots__ = ("width", "purse", "tables", "search")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    PURSE_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    width: int
    purse: bytes
    tables: _containers.RepeatedScalarFieldContainer[bytes]
    search: bytes
    def __init__(self, width: _Optional[int] = ..., purse: _Optional[bytes] = ..., tables: _Optional[_Iterable[bytes]] = ..., search: _Optional[bytes] = ...) -> None: ...

class Copy(_message.Message):
    __slots__ = ("source", "target", "num_slots")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    NUM_SLOTS_FIELD_NUMBER: _ClassVar[int]
    source: int
    target: int
    num_slots: int
    def __init__(self, source: _Optional[int] = ..., target: _Optional[int] = ..., num_slots: _Optional[int] = ...) -> None: ...

class Revoke(_message.Message):
    __slots__ = ("seq", "lease_end")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    LEASE_END_FIELD_NUMBER: _ClassVar[int]
    seq: int
    lease_end: int
    def __init__(self, seq: _Optional[int] = ..., lease_end: _Optional[int] = ...) -> None: ...

class Reroute(_message.Message):
    __slots__ = ("seq", "gateway", "route")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    seq: int
    gateway: str
    route: int
    def __init__(self, seq: _Optional[int] = ..., gateway: _Optional[str] = ..., route: _Optional[int] = ...) -> None: ...

class Transfer(_message.Message):
    __slots__ = ("transfer", "road", "peer", "peer_incarnation", "mine", "theirs", "timeout_s")
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    ROAD_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    PEER_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    MINE_FIELD_NUMBER: _ClassVar[int]
    THEIRS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    transfer: int
    road: Road
    peer: str
    peer_incarnation: int
    mine: bytes
    theirs: bytes
    timeout_s: float
    def __init__(self, transfer: _Optional[int] = ..., road: _Optional[_Union[Road, str]] = ..., peer: _Optional[str] = ..., peer_incarnation: _Optional[int] = ..., mine: _Optional[bytes] = ..., theirs: _Optional[bytes] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("replica", "incarnation", "epoch", "number", "plan", "step", "advances", "stopped", "revoked", "groups", "transferred", "dry", "prefill_waiting", "step_seconds", "prefill_tokens_per_s", "unreached")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ADVANCES_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    TRANSFERRED_FIELD_NUMBER: _ClassVar[int]
    DRY_FIELD_NUMBER: _ClassVar[int]
    PREFILL_WAITING_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    UNREACHED_FIELD_NUMBER: _ClassVar[int]
    replica: str
    incarnation: int
    epoch: int
    number: int
    plan: int
    step: int
    advances: Advances
    stopped: _containers.RepeatedCompositeFieldContainer[Stopped]
    revoked: _containers.RepeatedCompositeFieldContainer[Revoked]
    groups: _containers.RepeatedCompositeFieldContainer[GroupTables]
    transferred: _containers.RepeatedCompositeFieldContainer[Transferred]
    dry: int
    prefill_waiting: int
    step_seconds: float
    prefill_tokens_per_s: float
    unreached: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, replica: _Optional[str] = ..., incarnation: _Optional[int] = ..., epoch: _Optional[int] = ..., number: _Optional[int] = ..., plan: _Optional[int] = ..., step: _Optional[int] = ..., advances: _Optional[_Union[Advances, _Mapping[str, object]]] = ..., stopped: _Optional[_Iterable[_Union[Stopped, _Mapping[str, object]]]] = ..., revoked: _Optional[_Iterable[_Union[Revoked, _Mapping[str, object]]]] = ..., groups: _Optional[_Iterable[_Union[GroupTables, _Mapping[str, object]]]] = ..., transferred: _Optional[_Iterable[_Union[Transferred, _Mapping[str, object]]]] = ..., dry: _Optional[int] = ..., prefill_waiting: _Optional[int] = ..., step_seconds: _Optional[float] = ..., prefill_tokens_per_s: _Optional[float] = ..., unreached: _Optional[_Iterable[str]] = ...) -> None: ...

class Advances(_message.Message):
    __slots__ = ("seqs", "positions", "num_ids", "ids", "num_hashes", "hashes")
    SEQS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_IDS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_HASHES_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    seqs: bytes
    positions: bytes
    num_ids: bytes
    ids: bytes
    num_hashes: bytes
    hashes: bytes
    def __init__(self, seqs: _Optional[bytes] = ..., positions: _Optional[bytes] = ..., num_ids: _Optional[bytes] = ..., ids: _Optional[bytes] = ..., num_hashes: _Optional[bytes] = ..., hashes: _Optional[bytes] = ...) -> None: ...

class Stopped(_message.Message):
    __slots__ = ("seq", "reason", "position", "ids", "hashes", "detail", "tables", "search")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    seq: int
    reason: StopReason
    position: int
    ids: bytes
    hashes: bytes
    detail: str
    tables: _containers.RepeatedScalarFieldContainer[bytes]
    search: bytes
    def __init__(self, seq: _Optional[int] = ..., reason: _Optional[_Union[StopReason, str]] = ..., position: _Optional[int] = ..., ids: _Optional[bytes] = ..., hashes: _Optional[bytes] = ..., detail: _Optional[str] = ..., tables: _Optional[_Iterable[bytes]] = ..., search: _Optional[bytes] = ...) -> None: ...

class Revoked(_message.Message):
    __slots__ = ("seq", "lease_end")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    LEASE_END_FIELD_NUMBER: _ClassVar[int]
    seq: int
    lease_end: int
    def __init__(self, seq: _Optional[int] = ..., lease_end: _Optional[int] = ...) -> None: ...

class GroupTables(_message.Message):
    __slots__ = ("seq", "position", "tables", "purse")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    PURSE_FIELD_NUMBER: _ClassVar[int]
    seq: int
    position: int
    tables: _containers.RepeatedScalarFieldContainer[bytes]
    purse: bytes
    def __init__(self, seq: _Optional[int] = ..., position: _Optional[int] = ..., tables: _Optional[_Iterable[bytes]] = ..., purse: _Optional[bytes] = ...) -> None: ...

class Transferred(_message.Message):
    __slots__ = ("transfer", "ok", "detail", "size_bytes", "seconds")
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    OK_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    transfer: int
    ok: bool
    detail: str
    size_bytes: int
    seconds: float
    def __init__(self, transfer: _Optional[int] = ..., ok: _Optional[bool] = ..., detail: _Optional[str] = ..., size_bytes: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class ReplicaJoined(_message.Message):
    __slots__ = ("replica", "incarnation", "node", "model", "num_blocks", "block_size", "block_bytes", "fingerprint", "max_batch", "max_model_len", "prefill_tokens_per_s", "bytes_per_s", "digest")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    replica: str
    incarnation: int
    node: str
    model: str
    num_blocks: int
    block_size: int
    block_bytes: int
    fingerprint: str
    max_batch: int
    max_model_len: int
    prefill_tokens_per_s: float
    bytes_per_s: float
    digest: bytes
    def __init__(self, replica: _Optional[str] = ..., incarnation: _Optional[int] = ..., node: _Optional[str] = ..., model: _Optional[str] = ..., num_blocks: _Optional[int] = ..., block_size: _Optional[int] = ..., block_bytes: _Optional[int] = ..., fingerprint: _Optional[str] = ..., max_batch: _Optional[int] = ..., max_model_len: _Optional[int] = ..., prefill_tokens_per_s: _Optional[float] = ..., bytes_per_s: _Optional[float] = ..., digest: _Optional[bytes] = ...) -> None: ...

class HostPoolJoined(_message.Message):
    __slots__ = ("pool", "incarnation", "node", "num_blocks", "block_bytes", "fingerprint", "bytes_per_s")
    POOL_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    pool: str
    incarnation: int
    node: str
    num_blocks: int
    block_bytes: int
    fingerprint: str
    bytes_per_s: float
    def __init__(self, pool: _Optional[str] = ..., incarnation: _Optional[int] = ..., node: _Optional[str] = ..., num_blocks: _Optional[int] = ..., block_bytes: _Optional[int] = ..., fingerprint: _Optional[str] = ..., bytes_per_s: _Optional[float] = ...) -> None: ...

class GiveUp(_message.Message):
    __slots__ = ("pool", "incarnation", "epoch", "transfers")
    POOL_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    pool: str
    incarnation: int
    epoch: int
    transfers: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, pool: _Optional[str] = ..., incarnation: _Optional[int] = ..., epoch: _Optional[int] = ..., transfers: _Optional[_Iterable[int]] = ...) -> None: ...

class HostPoolSettled(_message.Message):
    __slots__ = ("pool", "incarnation", "transfer")
    POOL_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    pool: str
    incarnation: int
    transfer: int
    def __init__(self, pool: _Optional[str] = ..., incarnation: _Optional[int] = ..., transfer: _Optional[int] = ...) -> None: ...

class ReplicaState(_message.Message):
    __slots__ = ("joined", "residents", "cached", "transfers", "departed")
    JOINED_FIELD_NUMBER: _ClassVar[int]
    RESIDENTS_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    DEPARTED_FIELD_NUMBER: _ClassVar[int]
    joined: ReplicaJoined
    residents: _containers.RepeatedCompositeFieldContainer[Resident]
    cached: _containers.RepeatedCompositeFieldContainer[CachedBlock]
    transfers: _containers.RepeatedCompositeFieldContainer[Transfer]
    departed: _containers.RepeatedCompositeFieldContainer[Departed]
    def __init__(self, joined: _Optional[_Union[ReplicaJoined, _Mapping[str, object]]] = ..., residents: _Optional[_Iterable[_Union[Resident, _Mapping[str, object]]]] = ..., cached: _Optional[_Iterable[_Union[CachedBlock, _Mapping[str, object]]]] = ..., transfers: _Optional[_Iterable[_Union[Transfer, _Mapping[str, object]]]] = ..., departed: _Optional[_Iterable[_Union[Departed, _Mapping[str, object]]]] = ...) -> None: ...

class Departed(_message.Message):
    __slots__ = ("start", "seq", "index", "reason")
    START_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    start: Start
    seq: int
    index: int
    reason: StopReason
    def __init__(self, start: _Optional[_Union[Start, _Mapping[str, object]]] = ..., seq: _Optional[int] = ..., index: _Optional[int] = ..., reason: _Optional[_Union[StopReason, str]] = ...) -> None: ...

class Resident(_message.Message):
    __slots__ = ("start", "tokens", "position", "table", "lease_end", "seq", "index")
    START_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    LEASE_END_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    start: Start
    tokens: bytes
    position: int
    table: bytes
    lease_end: int
    seq: int
    index: int
    def __init__(self, start: _Optional[_Union[Start, _Mapping[str, object]]] = ..., tokens: _Optional[bytes] = ..., position: _Optional[int] = ..., table: _Optional[bytes] = ..., lease_end: _Optional[int] = ..., seq: _Optional[int] = ..., index: _Optional[int] = ...) -> None: ...

class CachedBlock(_message.Message):
    __slots__ = ("block", "name")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    block: int
    name: bytes
    def __init__(self, block: _Optional[int] = ..., name: _Optional[bytes] = ...) -> None: ...
