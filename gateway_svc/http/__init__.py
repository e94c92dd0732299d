"""The gateway over HTTP: REST, server-sent events and the console's files."""
