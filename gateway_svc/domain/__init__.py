"""Decisions of the gateway without gRPC, clock or I/O."""
