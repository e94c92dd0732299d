"""Tools of MCP servers. The SDK is imported at the first use: it takes a second."""
