"""Benchmarks of the geometry, of training and of streaming, each against a baseline."""
