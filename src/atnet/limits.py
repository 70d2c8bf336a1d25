"""Limits that several layers share."""

LARGEST_IMAGE = 2048
"""Pixels of a side of a network's input."""
