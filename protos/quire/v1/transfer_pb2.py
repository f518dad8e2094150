"""Messages of quire/v1/transfer.proto, written by protos/generate.py. Do not edit."""

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.descriptor_pool import Default
from google.protobuf.message_factory import GetMessageClass

DESCRIPTOR = Default().AddSerializedFile(b'\n\x17quire/v1/transfer.proto\x12\x08quire.v1"\x83\x01\n\x0cTransferName\x12\r\n\x05epoch\x18\x01 \x01(\x04\x12\x10\n\x08transfer\x18\x02 \x01(\x04\x12\x0c\n\x04part\x18\x03 \x01(\r\x12\x0e\n\x06caller\x18\x04 \x01(\t\x12\x1a\n\x12caller_incarnation\x18\x05 \x01(\x04\x12\x18\n\x10pool_incarnation\x18\x06 \x01(\x04"K\n\nPoolLayout\x12\x13\n\x0bfingerprint\x18\x01 \x01(\t\x12\x13\n\x0bblock_bytes\x18\x02 \x01(\x04\x12\x13\n\x0bchunk_bytes\x18\x03 \x01(\r"_\n\x0bJoinRequest\x12\x0e\n\x06caller\x18\x01 \x01(\t\x12\x1a\n\x12caller_incarnation\x18\x02 \x01(\x04\x12$\n\x06layout\x18\x03 \x01(\x0b2\x14.quire.v1.PoolLayout"\xa6\x01\n\x0cJoinResponse\x12\x0c\n\x04pool\x18\x01 \x01(\t\x12\x18\n\x10pool_incarnation\x18\x02 \x01(\x04\x12$\n\x06layout\x18\x03 \x01(\x0b2\x14.quire.v1.PoolLayout\x12\x12\n\nnum_blocks\x18\x04 \x01(\r\x12\x11\n\tdata_port\x18\x05 \x01(\r\x12\x10\n\x08handover\x18\x06 \x01(\t\x12\x0f\n\x07boot_id\x18\x07 \x01(\t"\xc9\x01\n\x0eReserveRequest\x12$\n\x04name\x18\x01 \x01(\x0b2\x16.quire.v1.TransferName\x12\r\n\x05write\x18\x02 \x01(\x08\x12$\n\x06layout\x18\x03 \x01(\x0b2\x14.quire.v1.PoolLayout\x12\x0e\n\x06blocks\x18\x04 \x01(\x0c\x12"\n\x07carrier\x18\x05 \x01(\x0e2\x11.quire.v1.Carrier\x12\x0f\n\x07session\x18\x06 \x01(\x04\x12\x11\n\ttimeout_s\x18\x07 \x01(\x01J\x04\x08\x08\x10\t"^\n\x0fReserveResponse\x12&\n\x05phase\x18\x01 \x01(\x0e2\x17.quire.v1.TransferPhase\x12\r\n\x05token\x18\x02 \x01(\x0c\x12\x0e\n\x06crc32c\x18\x04 \x01(\x0cJ\x04\x08\x03\x10\x04"*\n\nChunkRange\x12\r\n\x05first\x18\x01 \x01(\r\x12\r\n\x05count\x18\x02 \x01(\r"\x82\x01\n\rTransferChunk\x12$\n\x04name\x18\x01 \x01(\x0b2\x16.quire.v1.TransferName\x12\r\n\x05block\x18\x02 \x01(\r\x12\x0e\n\x06offset\x18\x03 \x01(\r\x12\x0e\n\x06length\x18\x04 \x01(\r\x12\x0e\n\x06crc32c\x18\x05 \x01(\x07\x12\x0c\n\x04data\x18\x06 \x01(\x0c"0\n\tChunkSums\x12\r\n\x05first\x18\x02 \x01(\r\x12\x0e\n\x06crc32c\x18\x03 \x01(\x0cJ\x04\x08\x01\x10\x02"=\n\x0cWriteRequest\x12\'\n\x06chunks\x18\x01 \x03(\x0b2\x17.quire.v1.TransferChunkJ\x04\x08\x02\x10\x03"s\n\rWriteResponse\x12&\n\x05phase\x18\x01 \x01(\x0e2\x17.quire.v1.TransferPhase\x12%\n\x07missing\x18\x02 \x03(\x0b2\x14.quire.v1.ChunkRange\x12\x13\n\x0bnum_refused\x18\x03 \x01(\x04"Y\n\x0bReadRequest\x12$\n\x04name\x18\x01 \x01(\x0b2\x16.quire.v1.TransferName\x12$\n\x06chunks\x18\x02 \x03(\x0b2\x14.quire.v1.ChunkRange"Z\n\x0cReadResponse\x12\'\n\x06chunks\x18\x01 \x03(\x0b2\x17.quire.v1.TransferChunk\x12!\n\x04sums\x18\x02 \x01(\x0b2\x13.quire.v1.ChunkSums"X\n\rCommitRequest\x12$\n\x04name\x18\x01 \x01(\x0b2\x16.quire.v1.TransferName\x12!\n\x04sums\x18\x02 \x01(\x0b2\x13.quire.v1.ChunkSums"_\n\x0eCommitResponse\x12&\n\x05phase\x18\x01 \x01(\x0e2\x17.quire.v1.TransferPhase\x12%\n\x07missing\x18\x02 \x03(\x0b2\x14.quire.v1.ChunkRange"U\n\x0cAbortRequest\x12$\n\x04name\x18\x01 \x01(\x0b2\x16.quire.v1.TransferName\x12\x0e\n\x06reason\x18\x02 \x01(\t\x12\x0f\n\x07stopped\x18\x03 \x01(\x08"=\n\rAbortResponse\x12&\n\x05phase\x18\x01 \x01(\x0e2\x17.quire.v1.TransferPhaseJ\x04\x08\x02\x10\x03"l\n\x0fHandoverRequest\x12\x0e\n\x06caller\x18\x02 \x01(\t\x12\x1a\n\x12caller_incarnation\x18\x03 \x01(\x04\x12\x18\n\x10pool_incarnation\x18\x04 \x01(\x04\x12\r\n\x05write\x18\x05 \x01(\x08J\x04\x08\x01\x10\x02"G\n\x10HandoverResponse\x12\x0f\n\x07session\x18\x01 \x01(\x04\x12\x12\n\nsize_bytes\x18\x02 \x01(\x04\x12\x0e\n\x06detail\x18\x03 \x01(\t*e\n\x07Carrier\x12\x17\n\x13CARRIER_UNSPECIFIED\x10\x00\x12\x19\n\x15CARRIER_SHARED_MEMORY\x10\x01\x12\x12\n\x0eCARRIER_SOCKET\x10\x02\x12\x12\n\x0eCARRIER_STREAM\x10\x03*\xa2\x01\n\rTransferPhase\x12\x1e\n\x1aTRANSFER_PHASE_UNSPECIFIED\x10\x00\x12\x1b\n\x17TRANSFER_PHASE_RESERVED\x10\x01\x12\x1a\n\x16TRANSFER_PHASE_COPYING\x10\x02\x12\x1c\n\x18TRANSFER_PHASE_COMMITTED\x10\x03\x12\x1a\n\x16TRANSFER_PHASE_ABORTED\x10\x042\xf4\x02\n\x0fTransferService\x125\n\x04Join\x12\x15.quire.v1.JoinRequest\x1a\x16.quire.v1.JoinResponse\x12>\n\x07Reserve\x12\x18.quire.v1.ReserveRequest\x1a\x19.quire.v1.ReserveResponse\x12:\n\x05Write\x12\x16.quire.v1.WriteRequest\x1a\x17.quire.v1.WriteResponse(\x01\x127\n\x04Read\x12\x15.quire.v1.ReadRequest\x1a\x16.quire.v1.ReadResponse0\x01\x12;\n\x06Commit\x12\x17.quire.v1.CommitRequest\x1a\x18.quire.v1.CommitResponse\x128\n\x05Abort\x12\x16.quire.v1.AbortRequest\x1a\x17.quire.v1.AbortResponseb\x06proto3')

TransferName = GetMessageClass(DESCRIPTOR.message_types_by_name['TransferName'])
PoolLayout = GetMessageClass(DESCRIPTOR.message_types_by_name['PoolLayout'])
JoinRequest = GetMessageClass(DESCRIPTOR.message_types_by_name['JoinRequest'])
JoinResponse = GetMessageClass(DESCRIPTOR.message_types_by_name['JoinResponse'])
ReserveRequest = GetMessageClass(DESCRIPTOR.message_types_by_name['ReserveRequest'])
ReserveResponse = GetMessageClass(DESCRIPTOR.message_types_by_name['ReserveResponse'])
ChunkRange = GetMessageClass(DESCRIPTOR.message_types_by_name['ChunkRange'])
TransferChunk = GetMessageClass(DESCRIPTOR.message_types_by_name['TransferChunk'])
ChunkSums = GetMessageClass(DESCRIPTOR.message_types_by_name['ChunkSums'])
WriteRequest = GetMessageClass(DESCRIPTOR.message_types_by_name['WriteRequest'])
WriteResponse = GetMessageClass(DESCRIPTOR.message_types_by_name['WriteResponse'])
ReadRequest = GetMessageClass(DESCRIPTOR.message_types_by_name['ReadRequest'])
ReadResponse = GetMessageClass(DESCRIPTOR.message_types_by_name['ReadResponse'])
CommitRequest = GetMessageClass(DESCRIPTOR.message_types_by_name['CommitRequest'])
CommitResponse = GetMessageClass(DESCRIPTOR.message_types_by_name['CommitResponse'])
AbortRequest = GetMessageClass(DESCRIPTOR.message_types_by_name['AbortRequest'])
AbortResponse = GetMessageClass(DESCRIPTOR.message_types_by_name['AbortResponse'])
HandoverRequest = GetMessageClass(DESCRIPTOR.message_types_by_name['HandoverRequest'])
HandoverResponse = GetMessageClass(DESCRIPTOR.message_types_by_name['HandoverResponse'])

Carrier = EnumTypeWrapper(DESCRIPTOR.enum_types_by_name['Carrier'])
CARRIER_UNSPECIFIED = 0
CARRIER_SHARED_MEMORY = 1
CARRIER_SOCKET = 2
CARRIER_STREAM = 3

TransferPhase = EnumTypeWrapper(DESCRIPTOR.enum_types_by_name['TransferPhase'])
TRANSFER_PHASE_UNSPECIFIED = 0
TRANSFER_PHASE_RESERVED = 1
TRANSFER_PHASE_COPYING = 2
TRANSFER_PHASE_COMMITTED = 3
TRANSFER_PHASE_ABORTED = 4
