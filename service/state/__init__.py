"""The durable state: what must outlive the process and be the same for every replica. Never the cache."""
