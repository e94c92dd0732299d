"""Slash commands: what can be typed, how it is read, and in which words it is answered."""
