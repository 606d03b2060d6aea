"""Optimizers that hold the agreed values: `bind`."""
