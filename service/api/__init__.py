"""The HTTP interface: a folder for each protocol; the other folders are shared by them."""
