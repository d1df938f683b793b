"""Errors to HTTP: status and body, in each protocol's form."""
