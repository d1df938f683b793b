"""Reads a request within limits: bodies, forms, fields, archives, ETags."""
