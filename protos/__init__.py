"""Speaks: the services and messages of the wire package `quire.v1` and the Python code generated from them.

This package imports nothing else of the project.
"""
