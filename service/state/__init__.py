"""Durable state: data that outlives the process and is the same for all replicas. The caches are not part of it."""
