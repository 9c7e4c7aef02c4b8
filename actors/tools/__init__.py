"""Tools that agents may call, beside the operations of actors: built in, functions, and those of MCP servers."""
