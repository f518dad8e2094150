"""Speaks: the services and messages of the wire package `quire.v1` and the Python code generated from them.

The sources are `protos/quire/v1/*.proto`; `python -m protos.generate` writes the modules `protos.quire.v1.*_pb2` and
`*_pb2_grpc`, and a test says when they are stale. This package imports nothing else of the project.
"""

OLDEST_PROTOBUF = "4.25.8"
"""The oldest protobuf runtime that the generated messages and the client are tried with, up to the newest 7.x."""

OLDEST_PROTOCOL = 2
NEWEST_PROTOCOL = 2
"""Versions of the internal streams (control, front, tokens) that this code speaks; ends agree on the highest common. A
message or field that changes its meaning, or a stream that changes its road, makes another. 2: tokens as frames."""
