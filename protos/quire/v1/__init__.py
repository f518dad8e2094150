"""Generated modules of the wire package quire.v1."""
