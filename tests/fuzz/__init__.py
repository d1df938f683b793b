"""Fuzzing: schemathesis generates valid and invalid requests from the OpenAPI document for a real service."""
