"""Reads published weights of any layout as a `ModelSource`."""
