"""Triton kernels, and where they can be used."""
