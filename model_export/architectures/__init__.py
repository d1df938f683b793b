"""The towers, in torch, their configurations, and the sizes that have a name."""
