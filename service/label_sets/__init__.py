"""Named label sets: written and computed once, kept in the durable state, and used in requests by name."""
