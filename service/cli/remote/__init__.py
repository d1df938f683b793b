"""The client of a running service: requests, back-off, polling."""
