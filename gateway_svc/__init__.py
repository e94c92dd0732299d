"""The gateway: the one door through which channels, people and programs reach the suite."""
