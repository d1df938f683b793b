"""Metrics, also of several workers, and logs."""
