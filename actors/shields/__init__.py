"""Shields: what looks at messages, at tools' arguments and at their answers, and says what must not pass."""
