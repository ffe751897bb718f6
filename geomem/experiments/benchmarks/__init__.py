"""Benchmarks of the geometry, of training and of streaming, each beside a baseline."""
