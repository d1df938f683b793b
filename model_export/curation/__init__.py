"""Curate image–text pairs: queries, matching, filtering, balancing, on Arrow tables."""
