"""Other people's queues under the same load. They run in an environment of their own."""
