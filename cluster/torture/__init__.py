"""`quire torture`: a cluster of its own under kills and stops, with streams that are compared token by token."""
