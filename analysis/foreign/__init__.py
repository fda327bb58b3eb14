"""Runs that other trackers recorded, as canonical tables."""
