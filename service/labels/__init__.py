"""Labels to vectors: matrices, cache keys and pending vectors."""
