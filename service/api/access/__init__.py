"""API keys and the rate limit."""
