"""Streams of events to clients: resumable, gap-free, and ended politely when the gateway drains."""
