"""Who may send how much: API keys and the rate limit."""
