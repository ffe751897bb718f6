"""Timings of the geometry, of training and of streaming, each beside what it is compared with."""
