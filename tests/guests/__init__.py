"""Guests to test with: their sources, and how they are built."""
