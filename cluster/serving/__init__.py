"""The processes of a cluster on Ray: actors, streams, addresses, start and stop."""
