"""The HTTP interface: what a request may look like, how it is read, and what every answer looks like."""
