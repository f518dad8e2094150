"""The seam to the device: all that Quire asks of a GPU, of the CPU, and of the twin that stands for a GPU in proofs."""
