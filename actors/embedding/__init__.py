"""Embeddings: texts become vectors whose directions tell their meaning."""
