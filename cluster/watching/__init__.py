"""Figures, logs and traces of a cluster, and the doctor who reads them."""
