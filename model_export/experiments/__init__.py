"""Experiments: the paper's claims, measured with the trainer of this package."""
