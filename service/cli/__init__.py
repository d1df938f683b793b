"""The command `anyclass` and what only it needs: the server process, the client side of HTTP, the terminal."""

from service.cli.commands import app, main

__all__ = ["app", "main"]
