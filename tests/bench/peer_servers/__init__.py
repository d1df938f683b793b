"""Peer servers to compare with; each runs in an environment of its own."""
