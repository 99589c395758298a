"""Brings decisions to a real API server: observes, decides, applies, and stays the only one who does."""
