"""Synthetic data: candidates are generated and scored, and the good ones kept."""
