"""A bundle and the engine that runs it. The offline half uses this room too."""
