"""Encoded bytes to pixels: formats, JPEG, the decode pool, archives, fetching."""
