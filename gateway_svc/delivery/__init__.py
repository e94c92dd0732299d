"""Takes what was said from the event log to the channels that push it to people.

The follower reads the log from a durable cursor. In the transaction that moves the cursor it fills
an outbox per recipient, so a crash between the two cannot lose or double an entry. The dispatcher
empties the outboxes, each in order, and one recipient's trouble never holds another's.
"""
