"""Solvers, guidance and step caches inside the host's sampling."""
