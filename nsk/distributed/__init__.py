"""Devices and processes of a run: strategy, workers, rendezvous, shares of a batch, XLA."""
