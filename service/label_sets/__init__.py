"""Named label sets: written once, computed once, kept in the durable state, and used by name in requests."""
