"""Holds the versions of the wire package."""
