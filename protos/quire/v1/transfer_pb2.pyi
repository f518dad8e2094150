from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Carrier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CARRIER_UNSPECIFIED: _ClassVar[Carrier]
    CARRIER_SHARED_MEMORY: _ClassVar[Carrier]
    CARRIER_SOCKET: _ClassVar[Carrier]
    CARRIER_STREAM: _ClassVar[Carrier]

class TransferPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRANSFER_PHASE_UNSPECIFIED: _ClassVar[TransferPhase]
    TRANSFER_PHASE_RESERVED: _ClassVar[TransferPhase]
    TRANSFER_PHASE_COPYING: _ClassVar[TransferPhase]
    TRANSFER_PHASE_COMMITTED: _ClassVar[TransferPhase]
    TRANSFER_PHASE_ABORTED: _ClassVar[TransferPhase]
CARRIER_UNSPECIFIED: Carrier
CARRIER_SHARED_MEMORY: Carrier
CARRIER_SOCKET: Carrier
CARRIER_STREAM: Carrier
TRANSFER_PHASE_UNSPECIFIED: TransferPhase
TRANSFER_PHASE_RESERVED: TransferPhase
TRANSFER_PHASE_COPYING: TransferPhase
TRANSFER_PHASE_COMMITTED: TransferPhase
TRANSFER_PHASE_ABORTED: TransferPhase

class TransferName(_message.Message):
    __slots__ = ("epoch", "transfer", "part", "caller", "caller_incarnation", "pool_incarnation")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    CALLER_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    POOL_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    transfer: int
    part: int
    caller: str
    caller_incarnation: int
    pool_incarnation: int
    def __init__(self, epoch: _Optional[int] = ..., transfer: _Optional[int] = ..., part: _Optional[int] = ..., caller: _Optional[str] = ..., caller_incarnation: _Optional[int] = ..., pool_incarnation: _Optional[int] = ...) -> None: ...

class PoolLayout(_message.Message):
    __slots__ = ("fingerprint", "block_bytes", "chunk_bytes")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    block_bytes: int
    chunk_bytes: int
    def __init__(self, fingerprint: _Optional[str] = ..., block_bytes: _Optional[int] = ..., chunk_bytes: _Optional[int] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("caller", "caller_incarnation", "layout")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    CALLER_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    caller: str
    caller_incarnation: int
    layout: PoolLayout
    def __init__(self, caller: _Optional[str] = ..., caller_incarnation: _Optional[int] = ..., layout: _Optional[_Union[PoolLayout, _Mapping[str, object]]] = ...) -> None: ...

class JoinResponse(_message.Message):
    __slots__ = ("pool", "pool_incarnation", "layout", "num_blocks", "data_port", "handover", "boot_id")
    POOL_FIELD_NUMBER: _ClassVar[int]
    POOL_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DATA_PORT_FIELD_NUMBER: _ClassVar[int]
    HANDOVER_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    pool: str
    pool_incarnation: int
    layout: PoolLayout
    num_blocks: int
    data_port: int
    handover: str
    boot_id: str
    def __init__(self, pool: _Optional[str] = ..., pool_incarnation: _Optional[int] = ..., layout: _Optional[_Union[PoolLayout, _Mapping[str, object]]] = ..., num_blocks: _Optional[int] = ..., data_port: _Optional[int] = ..., handover: _Optional[str] = ..., boot_id: _Optional[str] = ...) -> None: ...

class ReserveRequest(_message.Message):
    __slots__ = ("name", "write", "layout", "blocks", "carrier", "session", "timeout_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WRITE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CARRIER_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    name: TransferName
    write: bool
    layout: PoolLayout
    blocks: bytes
    carrier: Carrier
    session: int
    timeout_s: float
    def __init__(self, name: _Optional[_Union[TransferName, _Mapping[str, object]]] = ..., write: _Optional[bool] = ..., layout: _Optional[_Union[PoolLayout, _Mapping[str, object]]] = ..., blocks: _Optional[bytes] = ..., carrier: _Optional[_Union[Carrier, str]] = ..., session: _Optional[int] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class ReserveResponse(_message.Message):
    __slots__ = ("phase", "token", "crc32c")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    phase: TransferPhase
    token: bytes
    crc32c: bytes
    def __init__(self, phase: _Optional[_Union[TransferPhase, str]] = ..., token: _Optional[bytes] = ..., crc32c: _Optional[bytes] = ...) -> None: ...

class ChunkRange(_message.Message):
    __slots__ = ("first", "count")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    first: int
    count: int
    def __init__(self, first: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class TransferChunk(_message.Message):
    __slots__ = ("name", "block", "offset", "length", "crc32c", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: TransferName
    block: int
    offset: int
    length: int
    crc32c: int
    data: bytes
    def __init__(self, name: _Optional[_Union[TransferName, _Mapping[str, object]]] = ..., block: _Optional[int] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ..., crc32c: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class ChunkSums(_message.Message):
    __slots__ = ("first", "crc32c")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    first: int
    crc32c: bytes
    def __init__(self, first: _Optional[int] = ..., crc32c: _Optional[bytes] = ...) -> None: ...

class WriteRequest(_message.Message):
    __slots__ = ("chunks",)
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[TransferChunk]
    def __init__(self, chunks: _Optional[_Iterable[_Union[TransferChunk, _Mapping[str, object]]]] = ...) -> None: ...

class WriteResponse(_message.Message):
    __slots__ = ("phase", "missing", "num_refused")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    NUM_REFUSED_FIELD_NUMBER: _ClassVar[int]
    phase: TransferPhase
    missing: _containers.RepeatedCompositeFieldContainer[ChunkRange]
    num_refused: int
    def __init__(self, phase: _Optional[_Union[TransferPhase, str]] = ..., missing: _Optional[_Iterable[_Union[ChunkRange, _Mapping[str, object]]]] = ..., num_refused: _Optional[int] = ...) -> None: ...

class ReadRequest(_message.Message):
    __slots__ = ("name", "chunks")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    name: TransferName
    chunks: _containers.RepeatedCompositeFieldContainer[ChunkRange]
    def __init__(self, name: _Optional[_Union[TransferName, _Mapping[str, object]]] = ..., chunks: _Optional[_Iterable[_Union[ChunkRange, _Mapping[str, object]]]] = ...) -> None: ...

class ReadResponse(_message.Message):
    __slots__ = ("chunks", "sums")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    SUMS_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[TransferChunk]
    sums: ChunkSums
    def __init__(self, chunks: _Optional[_Iterable[_Union[TransferChunk, _Mapping[str, object]]]] = ..., sums: _Optional[_Union[ChunkSums, _Mapping[str, object]]] = ...) -> None: ...

class CommitRequest(_message.Message):
    __slots__ = ("name", "sums")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUMS_FIELD_NUMBER: _ClassVar[int]
    name: TransferName
    sums: ChunkSums
    def __init__(self, name: _Optional[_Union[TransferName, _Mapping[str, object]]] = ..., sums: _Optional[_Union[ChunkSums, _Mapping[str, object]]] = ...) -> None: ...

class CommitResponse(_message.Message):
    __slots__ = ("phase", "missing")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    phase: TransferPhase
    missing: _containers.RepeatedCompositeFieldContainer[ChunkRange]
    def __init__(self, phase: _Optional[_Union[TransferPhase, str]] = ..., missing: _Optional[_Iterable[_Union[ChunkRange, _Mapping[str, object]]]] = ...) -> None: ...

class AbortRequest(_message.Message):
    __slots__ = ("name", "reason", "stopped")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    name: TransferName
    reason: str
    stopped: bool
    def __init__(self, name: _Optional[_Union[TransferName, _Mapping[str, object]]] = ..., reason: _Optional[str] = ..., stopped: _Optional[bool] = ...) -> None: ...

class AbortResponse(_message.Message):
    __slots__ = ("phase",)
    PHASE_FIELD_NUMBER: _ClassVar[int]
    phase: TransferPhase
    def __init__(self, phase: _Optional[_Union[TransferPhase, str]] = ...) -> None: ...

class HandoverRequest(_message.Message):
    __slots__ = ("caller", "caller_incarnation", "pool_incarnation", "write")
    CALLER_FIELD_NUMBER: _ClassVar[int]
    CALLER_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    POOL_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    WRITE_FIELD_NUMBER: _ClassVar[int]
    caller: str
    caller_incarnation: int
    pool_incarnation: int
    write: bool
    def __init__(self, caller: _Optional[str] = ..., caller_incarnation: _Optional[int] = ..., pool_incarnation: _Optional[int] = ..., write: _Optional[bool] = ...) -> None: ...

class HandoverResponse(_message.Message):
    __slots__ = ("session", "size_bytes", "detail")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    session: int
    size_bytes: int
    detail: str
    def __init__(self, session: _Optional[int] = ..., size_bytes: _Optional[int] = ..., detail: _Optional[str] = ...) -> None: ...
