"""Progress and rendering for people at a terminal."""
