"""Readers: from the layouts in which weights are published to a `ModelSource`."""
