"""The CPU path: kernels as LLVM text, compiled here without a compiler."""
