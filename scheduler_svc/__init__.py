"""The kernel of the suite: lanes, leases, spawn trees, announcements and the event log."""
