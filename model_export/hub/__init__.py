"""Fetch repositories from the Hugging Face Hub: choice of files, cache, errors."""
