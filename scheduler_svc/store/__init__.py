"""Where the scheduler keeps its state: one protocol, several stores, one contract suite."""
