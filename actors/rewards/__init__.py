"""Rewards: what scores answers, and the actor that serves it."""
