"""Turns many requests into few batches; sees tensors, clocks and sessions, nothing else."""
