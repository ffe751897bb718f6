"""Figures: columns, rows and results in, matplotlib figures out."""
