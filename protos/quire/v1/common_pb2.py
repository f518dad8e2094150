"""Messages of quire/v1/common.proto, written by protos/generate.py. Do not edit."""

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.descriptor_pool import Default
from google.protobuf.message_factory import GetMessageClass
from google.protobuf import any_pb2  # noqa: F401
from google.protobuf import duration_pb2  # noqa: F401

DESCRIPTOR = Default().AddSerializedFile(b'\n\x15quire/v1/common.proto\x12\x08quire.v1\x1a\x19google/protobuf/any.proto\x1a\x1egoogle/protobuf/duration.proto"\x17\n\x08TokenIds\x12\x0b\n\x03ids\x18\x01 \x03(\x05"\xa3\n\n\x08Sampling\x12\x0e\n\x01n\x18\x01 \x01(\x03H\x00\x88\x01\x01\x12\x18\n\x0btemperature\x18\x02 \x01(\x01H\x01\x88\x01\x01\x12\x12\n\x05top_p\x18\x03 \x01(\x01H\x02\x88\x01\x01\x12\x12\n\x05top_k\x18\x04 \x01(\x03H\x03\x88\x01\x01\x12\x12\n\x05min_p\x18\x05 \x01(\x01H\x04\x88\x01\x01\x12\x1f\n\x12repetition_penalty\x18\x06 \x01(\x01H\x05\x88\x01\x01\x12\x1d\n\x10presence_penalty\x18\x07 \x01(\x01H\x06\x88\x01\x01\x12\x1e\n\x11frequency_penalty\x18\x08 \x01(\x01H\x07\x88\x01\x01\x12\x11\n\x04seed\x18\t \x01(\x04H\x08\x88\x01\x01\x125\n\nlogit_bias\x18\n \x03(\x0b2!.quire.v1.Sampling.LogitBiasEntry\x12-\n\x11allowed_token_ids\x18\x0b \x01(\x0b2\x12.quire.v1.TokenIds\x12\x11\n\tbad_words\x18\x0c \x03(\t\x12/\n\x13bad_words_token_ids\x18\r \x03(\x0b2\x12.quire.v1.TokenIds\x12;\n\rforced_tokens\x18\x0e \x03(\x0b2$.quire.v1.Sampling.ForcedTokensEntry\x12\x17\n\nmax_tokens\x18\x0f \x01(\x03H\t\x88\x01\x01\x12\x1d\n\x10unlimited_tokens\x18\x10 \x01(\x08H\n\x88\x01\x01\x12\x17\n\nmin_tokens\x18\x11 \x01(\x03H\x0b\x88\x01\x01\x12\x0c\n\x04stop\x18\x12 \x03(\t\x12\x16\n\x0estop_token_ids\x18\x13 \x03(\x05\x12\x17\n\nignore_eos\x18\x14 \x01(\x08H\x0c\x88\x01\x01\x12\'\n\x1ainclude_stop_str_in_output\x18\x15 \x01(\x08H\r\x88\x01\x01\x12\x15\n\x08logprobs\x18\x16 \x01(\x03H\x0e\x88\x01\x01\x12\x1c\n\x0fprompt_logprobs\x18\x17 \x01(\x03H\x0f\x88\x01\x01\x12\x17\n\ndetokenize\x18\x18 \x01(\x08H\x10\x88\x01\x01\x12 \n\x13skip_special_tokens\x18\x19 \x01(\x08H\x11\x88\x01\x01\x12\x17\n\nbeam_width\x18\x1a \x01(\x03H\x12\x88\x01\x01\x12\x1b\n\x0elength_penalty\x18\x1b \x01(\x01H\x13\x88\x01\x01\x124\n\x0eearly_stopping\x18\x1c \x01(\x0e2\x17.quire.v1.EarlyStoppingH\x14\x88\x01\x01\x1a0\n\x0eLogitBiasEntry\x12\x0b\n\x03key\x18\x01 \x01(\x05\x12\r\n\x05value\x18\x02 \x01(\x01:\x028\x01\x1a3\n\x11ForcedTokensEntry\x12\x0b\n\x03key\x18\x01 \x01(\x05\x12\r\n\x05value\x18\x02 \x01(\x05:\x028\x01B\x04\n\x02_nB\x0e\n\x0c_temperatureB\x08\n\x06_top_pB\x08\n\x06_top_kB\x08\n\x06_min_pB\x15\n\x13_repetition_penaltyB\x13\n\x11_presence_penaltyB\x14\n\x12_frequency_penaltyB\x07\n\x05_seedB\r\n\x0b_max_tokensB\x13\n\x11_unlimited_tokensB\r\n\x0b_min_tokensB\r\n\x0b_ignore_eosB\x1d\n\x1b_include_stop_str_in_outputB\x0b\n\t_logprobsB\x12\n\x10_prompt_logprobsB\r\n\x0b_detokenizeB\x16\n\x14_skip_special_tokensB\r\n\x0b_beam_widthB\x11\n\x0f_length_penaltyB\x11\n\x0f_early_stopping",\n\nTopLogprob\x12\r\n\x05token\x18\x01 \x01(\x05\x12\x0f\n\x07logprob\x18\x02 \x01(\x02"Z\n\x07Logprob\x12\r\n\x05token\x18\x01 \x01(\x05\x12\x0f\n\x07logprob\x18\x02 \x01(\x02\x12\x0c\n\x04rank\x18\x03 \x01(\x05\x12!\n\x03top\x18\x04 \x03(\x0b2\x14.quire.v1.TopLogprob"D\n\rPromptLogprob\x12\'\n\x07logprob\x18\x01 \x01(\x0b2\x11.quire.v1.LogprobH\x00\x88\x01\x01B\n\n\x08_logprob"N\n\x06Status\x12\x0c\n\x04code\x18\x01 \x01(\x05\x12\x0f\n\x07message\x18\x02 \x01(\t\x12%\n\x07details\x18\x03 \x03(\x0b2\x14.google.protobuf.Any"\x91\x01\n\tErrorInfo\x12\x0e\n\x06reason\x18\x01 \x01(\t\x12\x0e\n\x06domain\x18\x02 \x01(\t\x123\n\x08metadata\x18\x03 \x03(\x0b2!.quire.v1.ErrorInfo.MetadataEntry\x1a/\n\rMetadataEntry\x12\x0b\n\x03key\x18\x01 \x01(\t\x12\r\n\x05value\x18\x02 \x01(\t:\x028\x01";\n\tRetryInfo\x12.\n\x0bretry_delay\x18\x01 \x01(\x0b2\x19.google.protobuf.Duration*x\n\rEarlyStopping\x12\x1e\n\x1aEARLY_STOPPING_UNSPECIFIED\x10\x00\x12\x16\n\x12EARLY_STOPPING_OFF\x10\x01\x12\x15\n\x11EARLY_STOPPING_ON\x10\x02\x12\x18\n\x14EARLY_STOPPING_NEVER\x10\x03*\x94\x01\n\x0cFinishReason\x12\x1d\n\x19FINISH_REASON_UNSPECIFIED\x10\x00\x12\x16\n\x12FINISH_REASON_STOP\x10\x01\x12\x18\n\x14FINISH_REASON_LENGTH\x10\x02\x12\x19\n\x15FINISH_REASON_ABORTED\x10\x03\x12\x18\n\x14FINISH_REASON_FAILED\x10\x04b\x06proto3')

TokenIds = GetMessageClass(DESCRIPTOR.message_types_by_name['TokenIds'])
Sampling = GetMessageClass(DESCRIPTOR.message_types_by_name['Sampling'])
TopLogprob = GetMessageClass(DESCRIPTOR.message_types_by_name['TopLogprob'])
Logprob = GetMessageClass(DESCRIPTOR.message_types_by_name['Logprob'])
PromptLogprob = GetMessageClass(DESCRIPTOR.message_types_by_name['PromptLogprob'])
Status = GetMessageClass(DESCRIPTOR.message_types_by_name['Status'])
ErrorInfo = GetMessageClass(DESCRIPTOR.message_types_by_name['ErrorInfo'])
RetryInfo = GetMessageClass(DESCRIPTOR.message_types_by_name['RetryInfo'])

EarlyStopping = EnumTypeWrapper(DESCRIPTOR.enum_types_by_name['EarlyStopping'])
EARLY_STOPPING_UNSPECIFIED = 0
EARLY_STOPPING_OFF = 1
EARLY_STOPPING_ON = 2
EARLY_STOPPING_NEVER = 3

FinishReason = EnumTypeWrapper(DESCRIPTOR.enum_types_by_name['FinishReason'])
FINISH_REASON_UNSPECIFIED = 0
FINISH_REASON_STOP = 1
FINISH_REASON_LENGTH = 2
FINISH_REASON_ABORTED = 3
FINISH_REASON_FAILED = 4
