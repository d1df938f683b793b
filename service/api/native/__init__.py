"""The service's own protocol: classification, label sets, operations."""
