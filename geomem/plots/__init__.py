"""Figures from saved results: numbers and files in, matplotlib figures out."""
