"""The client of the front door. The base install is enough for it."""
