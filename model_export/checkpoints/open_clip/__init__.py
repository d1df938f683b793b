"""Reader of open_clip repositories and checkpoints."""
