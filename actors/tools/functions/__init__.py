"""Python functions as tools: their signature is the schema, and their docstring the description."""
