"""Checkpoints of a PyTorch training: `Checkpointer`."""
