"""The front door: what a gateway validates, tokenizes, logs, cuts and streams."""
