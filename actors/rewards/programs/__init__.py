"""Verifiable rewards: programs that score answers."""
