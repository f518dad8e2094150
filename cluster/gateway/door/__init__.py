"""The pure machine of a gateway: what each client was sent, and what is told to whom (README.md)."""
