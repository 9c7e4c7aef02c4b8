"""Tools of MCP servers: each server is run, watched and, if need be, started again on its own."""
