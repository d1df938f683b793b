"""Caches of vectors: in process, in Redis, or both."""
