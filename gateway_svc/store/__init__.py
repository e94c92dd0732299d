"""What the gateway remembers: sessions, its place in the event log, and deliveries to make."""
