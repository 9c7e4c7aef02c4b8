"""Triggers: agents that are started by events on the bus."""
