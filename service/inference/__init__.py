"""One device shared by all requests: registry, batcher, selection, load estimate, admission."""
