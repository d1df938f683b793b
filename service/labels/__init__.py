"""Labels to vectors: caches, cache keys and pending vectors."""
