"""Around every request: access control, request context, the protocol of a path."""
