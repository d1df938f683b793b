"""`anyclass serve`: the HTTP server, its worker processes, and limits on a connection."""
