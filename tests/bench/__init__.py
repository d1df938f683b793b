"""Benchmarks: scripts, never timed assertions. `make bench` runs them; docs/benchmarks.md says what they found."""
