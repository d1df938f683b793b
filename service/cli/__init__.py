"""The command `anyclass`: the server process, the client of a running service, terminal output."""
