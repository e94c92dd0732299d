"""What the service remembers: sessions, ids of spawn requests, prompts that were sent."""
