"""Hugging Face's zero-shot-image-classification pipeline over HTTP."""
