"""ASGI middleware around every request: request context and access control."""
