"""Labels to vectors: caches, keys, vectors under way."""
