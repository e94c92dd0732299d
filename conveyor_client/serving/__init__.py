"""`conveyor acp serve`: our agents for any client of the Agent Client Protocol, over stdio."""
