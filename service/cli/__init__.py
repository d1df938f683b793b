"""The command `anyclass` and what only it needs: the server process, the client side of HTTP, the terminal."""
