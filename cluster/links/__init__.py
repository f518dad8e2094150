"""Links: how processes of a cluster talk. One numbered conversation, and the sockets that carry it. See README.md."""
