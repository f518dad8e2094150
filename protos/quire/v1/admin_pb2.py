"""Messages of quire/v1/admin.proto, written by protos/generate.py. Do not edit."""

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.descriptor_pool import Default
from google.protobuf.message_factory import GetMessageClass

DESCRIPTOR = Default().AddSerializedFile(b'\n\x14quire/v1/admin.proto\x12\x08quire.v1"\x13\n\x11GetClusterRequest"\xd2\x02\n\x12GetClusterResponse\x12\r\n\x05epoch\x18\x01 \x01(\x04\x12\x0f\n\x07version\x18\x02 \x01(\t\x12\x10\n\x08uptime_s\x18\x03 \x01(\x01\x12\x13\n\x0bnum_running\x18\x04 \x01(\x03\x12\x13\n\x0bnum_waiting\x18\x05 \x01(\x03\x12\x13\n\x0bnum_workers\x18\x06 \x01(\x03\x12\x14\n\x0cnum_gateways\x18\x07 \x01(\x03\x12<\n\x08counters\x18\x08 \x03(\x0b2*.quire.v1.GetClusterResponse.CountersEntry\x12\x1d\n\x05notes\x18\t \x03(\x0b2\x0e.quire.v1.Note\x12\'\n\x08gateways\x18\n \x03(\x0b2\x15.quire.v1.GatewayLink\x1a/\n\rCountersEntry\x12\x0b\n\x03key\x18\x01 \x01(\t\x12\r\n\x05value\x18\x02 \x01(\x03:\x028\x01"?\n\x0bGatewayLink\x12\x0c\n\x04name\x18\x01 \x01(\t\x12\x0f\n\x07address\x18\x02 \x01(\t\x12\x11\n\tconnected\x18\x03 \x01(\x08"Q\n\x04Note\x12\x0e\n\x06number\x18\x01 \x01(\x04\x12\r\n\x05age_s\x18\x02 \x01(\x01\x12\x0c\n\x04kind\x18\x03 \x01(\t\x12\x0f\n\x07subject\x18\x04 \x01(\t\x12\x0b\n\x03why\x18\x05 \x01(\t"\x14\n\x12ListWorkersRequest"b\n\x13ListWorkersResponse\x12!\n\x07workers\x18\x01 \x03(\x0b2\x10.quire.v1.Worker\x12(\n\x07missing\x18\x02 \x03(\x0b2\x17.quire.v1.MissingWorker",\n\rMissingWorker\x12\x0c\n\x04name\x18\x01 \x01(\t\x12\r\n\x05model\x18\x02 \x01(\t"\x88\x02\n\x06Worker\x12\x0c\n\x04name\x18\x01 \x01(\t\x12\x13\n\x0bincarnation\x18\x02 \x01(\x04\x12\x0c\n\x04node\x18\x03 \x01(\t\x12\r\n\x05model\x18\x04 \x01(\t\x12\x10\n\x08draining\x18\x05 \x01(\x08\x12\x15\n\rnum_sequences\x18\x06 \x01(\x05\x12\x11\n\tmax_batch\x18\x07 \x01(\x05\x12\x12\n\nnum_blocks\x18\x08 \x01(\x03\x12\x10\n\x08num_free\x18\t \x01(\x03\x12\r\n\x05steps\x18\n \x01(\x03\x12\x0e\n\x06step_s\x18\x0b \x01(\x01\x12\x12\n\ndry_leases\x18\x0c \x01(\x03\x12\x17\n\x0fprefill_waiting\x18\r \x01(\x03\x12\x10\n\x08silent_s\x18\x0e \x01(\x01"\x12\n\x10ListPoolsRequest"2\n\x11ListPoolsResponse\x12\x1d\n\x05pools\x18\x01 \x03(\x0b2\x0e.quire.v1.Pool"\x8e\x02\n\x04Pool\x12\x0c\n\x04name\x18\x01 \x01(\t\x12 \n\x04kind\x18\x02 \x01(\x0e2\x12.quire.v1.PoolKind\x12\x0c\n\x04node\x18\x03 \x01(\t\x12\x12\n\nblock_size\x18\x04 \x01(\x05\x12\x13\n\x0bblock_bytes\x18\x05 \x01(\x03\x12\x12\n\nnum_blocks\x18\x06 \x01(\x03\x12\x10\n\x08num_free\x18\x07 \x01(\x03\x12\x10\n\x08num_held\x18\x08 \x01(\x03\x12\x12\n\nnum_cached\x18\t \x01(\x03\x12\x12\n\nnum_moving\x18\n \x01(\x03\x12\x17\n\x0fnum_quarantined\x18\x0b \x01(\x03\x12\x12\n\nnum_shared\x18\x0c \x01(\x03\x12\x12\n\nnum_pinned\x18\r \x01(\x03"\\\n\x13ListRequestsRequest\x12&\n\x06states\x18\x01 \x03(\x0e2\x16.quire.v1.RequestState\x12\x0e\n\x06tenant\x18\x02 \x01(\t\x12\r\n\x05limit\x18\x03 \x01(\x05"X\n\x14ListRequestsResponse\x12*\n\x08requests\x18\x01 \x03(\x0b2\x18.quire.v1.RequestSummary\x12\x14\n\x0cnum_left_out\x18\x02 \x01(\x03"\xac\x02\n\x0eRequestSummary\x12\x12\n\nrequest_id\x18\x01 \x01(\t\x12\x0e\n\x06tenant\x18\x02 \x01(\t\x12\r\n\x05model\x18\x03 \x01(\t\x12%\n\x05state\x18\x04 \x01(\x0e2\x16.quire.v1.RequestState\x12\x10\n\x08priority\x18\x05 \x01(\x05\x12\x15\n\rprompt_tokens\x18\x06 \x01(\x03\x12\x15\n\routput_tokens\x18\x07 \x01(\x03\x12\x15\n\rnum_sequences\x18\x08 \x01(\x05\x12\x0e\n\x06worker\x18\t \x01(\t\x12\x0f\n\x07gateway\x18\n \x01(\t\x12\x13\n\x0bpreemptions\x18\x0b \x01(\x05\x12\x0f\n\x07queue_s\x18\x0c \x01(\x01\x12\x12\n\nnum_blocks\x18\r \x01(\x03\x12\x0e\n\x06reason\x18\x0e \x01(\t"<\n\x16DescribeRequestRequest\x12\x12\n\nrequest_id\x18\x01 \x01(\t\x12\x0e\n\x06tenant\x18\x02 \x01(\t"\xaf\x01\n\x17DescribeRequestResponse\x12)\n\x07request\x18\x01 \x01(\x0b2\x18.quire.v1.RequestSummary\x12\x0f\n\x07attempt\x18\x02 \x01(\x05\x12*\n\tsequences\x18\x03 \x03(\x0b2\x17.quire.v1.SequenceTable\x12\x15\n\rblock_seconds\x18\x04 \x01(\x01\x12\x15\n\rcached_tokens\x18\x05 \x01(\x03"\xaa\x01\n\rSequenceTable\x12\r\n\x05index\x18\x01 \x01(\x05\x12\x10\n\x08position\x18\x02 \x01(\x03\x12\x0e\n\x06length\x18\x03 \x01(\x03\x12\x11\n\tlease_end\x18\x04 \x01(\x03\x12\x0c\n\x04pool\x18\x05 \x01(\t\x12\x0e\n\x06blocks\x18\x06 \x03(\x05\x12\x0f\n\x07holders\x18\x07 \x03(\x05\x12\x13\n\x0bhost_blocks\x18\x08 \x03(\x05\x12\x11\n\thost_pool\x18\t \x01(\t"L\n\x12WatchBlocksRequest\x12\r\n\x05pools\x18\x01 \x03(\t\x12\x13\n\x0bwith_owners\x18\x02 \x01(\x08\x12\x12\n\ninterval_s\x18\x03 \x01(\x01"U\n\x13WatchBlocksResponse\x12 \n\x05pools\x18\x01 \x03(\x0b2\x11.quire.v1.PoolMap\x12\x0c\n\x04gone\x18\x02 \x03(\t\x12\x0e\n\x06number\x18\x03 \x01(\x04"\x91\x01\n\x07PoolMap\x12\x0c\n\x04pool\x18\x01 \x01(\t\x12\x13\n\x0bincarnation\x18\x02 \x01(\x04\x12\r\n\x05whole\x18\x03 \x01(\x08\x12\x12\n\nnum_blocks\x18\x04 \x01(\x03\x12\x0e\n\x06states\x18\x05 \x01(\x0c\x12\x0e\n\x06blocks\x18\x06 \x03(\x05\x12\x0e\n\x06owners\x18\x07 \x03(\x05\x12\x10\n\x08requests\x18\x08 \x03(\t",\n\x0cDrainRequest\x12\x0e\n\x06worker\x18\x01 \x01(\t\x12\x0c\n\x04undo\x18\x02 \x01(\x08"#\n\rDrainResponse\x12\x12\n\nnum_moving\x18\x01 \x01(\x05"0\n\x11CloseModelRequest\x12\r\n\x05model\x18\x01 \x01(\t\x12\x0c\n\x04undo\x18\x02 \x01(\x08"&\n\x12CloseModelResponse\x12\x10\n\x08num_open\x18\x01 \x01(\x05"!\n\x0fGetUsageRequest\x12\x0e\n\x06tenant\x18\x01 \x01(\t":\n\x10GetUsageResponse\x12&\n\x07tenants\x18\x01 \x03(\x0b2\x15.quire.v1.TenantUsage"\xb2\x01\n\x0bTenantUsage\x12\x0e\n\x06tenant\x18\x01 \x01(\t\x12\x14\n\x0cnum_requests\x18\x02 \x01(\x03\x12\x15\n\rprompt_tokens\x18\x03 \x01(\x03\x12\x15\n\rcached_tokens\x18\x04 \x01(\x03\x12\x15\n\routput_tokens\x18\x05 \x01(\x03\x12\x1c\n\x14device_block_seconds\x18\x06 \x01(\x01\x12\x1a\n\x12host_block_seconds\x18\x07 \x01(\x01*O\n\x08PoolKind\x12\x19\n\x15POOL_KIND_UNSPECIFIED\x10\x00\x12\x14\n\x10POOL_KIND_DEVICE\x10\x01\x12\x12\n\x0ePOOL_KIND_HOST\x10\x02*\xe7\x01\n\x0cRequestState\x12\x1d\n\x19REQUEST_STATE_UNSPECIFIED\x10\x00\x12\x18\n\x14REQUEST_STATE_QUEUED\x10\x01\x12\x18\n\x14REQUEST_STATE_PARKED\x10\x02\x12\x19\n\x15REQUEST_STATE_RUNNING\x10\x03\x12\x1a\n\x16REQUEST_STATE_STOPPING\x10\x04\x12\x19\n\x15REQUEST_STATE_SEALING\x10\x05\x12\x19\n\x15REQUEST_STATE_SWAPPED\x10\x06\x12\x17\n\x13REQUEST_STATE_ENDED\x10\x07*\xba\x01\n\nBlockState\x12\x1b\n\x17BLOCK_STATE_UNSPECIFIED\x10\x00\x12\x14\n\x10BLOCK_STATE_FREE\x10\x01\x12\x14\n\x10BLOCK_STATE_HELD\x10\x02\x12\x16\n\x12BLOCK_STATE_SHARED\x10\x03\x12\x16\n\x12BLOCK_STATE_CACHED\x10\x04\x12\x16\n\x12BLOCK_STATE_MOVING\x10\x05\x12\x1b\n\x17BLOCK_STATE_QUARANTINED\x10\x062\xa4\x05\n\x0cAdminService\x12G\n\nGetCluster\x12\x1b.quire.v1.GetClusterRequest\x1a\x1c.quire.v1.GetClusterResponse\x12J\n\x0bListWorkers\x12\x1c.quire.v1.ListWorkersRequest\x1a\x1d.quire.v1.ListWorkersResponse\x12D\n\tListPools\x12\x1a.quire.v1.ListPoolsRequest\x1a\x1b.quire.v1.ListPoolsResponse\x12M\n\x0cListRequests\x12\x1d.quire.v1.ListRequestsRequest\x1a\x1e.quire.v1.ListRequestsResponse\x12V\n\x0fDescribeRequest\x12 .quire.v1.DescribeRequestRequest\x1a!.quire.v1.DescribeRequestResponse\x12L\n\x0bWatchBlocks\x12\x1c.quire.v1.WatchBlocksRequest\x1a\x1d.quire.v1.WatchBlocksResponse0\x01\x128\n\x05Drain\x12\x16.quire.v1.DrainRequest\x1a\x17.quire.v1.DrainResponse\x12G\n\nCloseModel\x12\x1b.quire.v1.CloseModelRequest\x1a\x1c.quire.v1.CloseModelResponse\x12A\n\x08GetUsage\x12\x19.quire.v1.GetUsageRequest\x1a\x1a.quire.v1.GetUsageResponseb\x06proto3')

GetClusterRequest = GetMessageClass(DESCRIPTOR.message_types_by_name['GetClusterRequest'])
GetClusterResponse = GetMessageClass(DESCRIPTOR.message_types_by_name['GetClusterResponse'])
GatewayLink = GetMessageClass(DESCRIPTOR.message_types_by_name['GatewayLink'])
Note = GetMessageClass(DESCRIPTOR.message_types_by_name['Note'])
ListWorkersRequest = GetMessageClass(DESCRIPTOR.message_types_by_name['ListWorkersRequest'])
ListWorkersResponse = GetMessageClass(DESCRIPTOR.message_types_by_name['ListWorkersResponse'])
MissingWorker = GetMessageClass(DESCRIPTOR.message_types_by_name['MissingWorker'])
Worker = GetMessageClass(DESCRIPTOR.message_types_by_name['Worker'])
ListPoolsRequest = GetMessageClass(DESCRIPTOR.message_types_by_name['ListPoolsRequest'])
ListPoolsResponse = GetMessageClass(DESCRIPTOR.message_types_by_name['ListPoolsResponse'])
Pool = GetMessageClass(DESCRIPTOR.message_types_by_name['Pool'])
ListRequestsRequest = GetMessageClass(DESCRIPTOR.message_types_by_name['ListRequestsRequest'])
ListRequestsResponse = GetMessageClass(DESCRIPTOR.message_types_by_name['ListRequestsResponse'])
RequestSummary = GetMessageClass(DESCRIPTOR.message_types_by_name['RequestSummary'])
DescribeRequestRequest = GetMessageClass(DESCRIPTOR.message_types_by_name['DescribeRequestRequest'])
DescribeRequestResponse = GetMessageClass(DESCRIPTOR.message_types_by_name['DescribeRequestResponse'])
SequenceTable = GetMessageClass(DESCRIPTOR.message_types_by_name['SequenceTable'])
WatchBlocksRequest = GetMessageClass(DESCRIPTOR.message_types_by_name['WatchBlocksRequest'])
WatchBlocksResponse = GetMessageClass(DESCRIPTOR.message_types_by_name['WatchBlocksResponse'])
PoolMap = GetMessageClass(DESCRIPTOR.message_types_by_name['PoolMap'])
DrainRequest = GetMessageClass(DESCRIPTOR.message_types_by_name['DrainRequest'])
DrainResponse = GetMessageClass(DESCRIPTOR.message_types_by_name['DrainResponse'])
CloseModelRequest = GetMessageClass(DESCRIPTOR.message_types_by_name['CloseModelRequest'])
CloseModelResponse = GetMessageClass(DESCRIPTOR.message_types_by_name['CloseModelResponse'])
GetUsageRequest = GetMessageClass(DESCRIPTOR.message_types_by_name['GetUsageRequest'])
GetUsageResponse = GetMessageClass(DESCRIPTOR.message_types_by_name['GetUsageResponse'])
TenantUsage = GetMessageClass(DESCRIPTOR.message_types_by_name['TenantUsage'])

PoolKind = EnumTypeWrapper(DESCRIPTOR.enum_types_by_name['PoolKind'])
POOL_KIND_UNSPECIFIED = 0
POOL_KIND_DEVICE = 1
POOL_KIND_HOST = 2

RequestState = EnumTypeWrapper(DESCRIPTOR.enum_types_by_name['RequestState'])
REQUEST_STATE_UNSPECIFIED = 0
REQUEST_STATE_QUEUED = 1
REQUEST_STATE_PARKED = 2
REQUEST_STATE_RUNNING = 3
REQUEST_STATE_STOPPING = 4
REQUEST_STATE_SEALING = 5
REQUEST_STATE_SWAPPED = 6
REQUEST_STATE_ENDED = 7

BlockState = EnumTypeWrapper(DESCRIPTOR.enum_types_by_name['BlockState'])
BLOCK_STATE_UNSPECIFIED = 0
BLOCK_STATE_FREE = 1
BLOCK_STATE_HELD = 2
BLOCK_STATE_SHARED = 3
BLOCK_STATE_CACHED = 4
BLOCK_STATE_MOVING = 5
BLOCK_STATE_QUARANTINED = 6
