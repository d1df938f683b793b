"""The page at `/`: pictures and labels in a browser."""
