"""A device that is CPU tensors behind a border: memory that is apart, work that is late, graphs that are tapes."""
