"""Between the dataclasses of `cluster/messages/` and protobuf."""
