"""Reward models with a classification head, in Hugging Face's format, run by torch in a process of its own."""
