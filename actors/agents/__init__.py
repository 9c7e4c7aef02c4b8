"""Agents: durable turns, driven by executors over a journal, followed by readers."""
