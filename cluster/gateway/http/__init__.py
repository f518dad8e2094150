"""The HTTP door: OpenAI's API over the same gateway, the same validator and the same promises as the gRPC door."""
