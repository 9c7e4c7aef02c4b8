"""Jobs: work that takes long, accepted durably, run by whoever has its lease, told of by events, and ended once."""
