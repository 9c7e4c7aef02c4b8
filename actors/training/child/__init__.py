"""The process that trains: the only place where torch is imported."""
