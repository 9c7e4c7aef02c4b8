"""The closed loop: a model answers, is scored, learns from its good answers, and is kept if it has become better."""
