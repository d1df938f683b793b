"""Requests made up from the OpenAPI document by schemathesis, right and wrong ones, sent to a real service."""
