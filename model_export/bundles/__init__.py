"""Write a bundle and its probes; verify it."""
