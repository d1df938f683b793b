"""Real, small stand-ins that the tests share."""
