"""The production engine: vLLM in this process, its engine core a process of its own."""
