"""Rules about harnesses that need no process, no network and no clock."""
