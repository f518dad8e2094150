"""Between the dataclasses of `cluster/messages.py` and protobuf."""
