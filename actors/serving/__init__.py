"""Serving what was trained: checkpoints as GGUF files, and the registry of models that are served beside the configured ones."""
