"""The embedded engine: one process, without Ray or gRPC, under vLLM's offline names."""
