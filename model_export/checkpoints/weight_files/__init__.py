"""Reads tensors from weights files without running any code in them."""
