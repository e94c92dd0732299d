"""The gRPC side of the service: translation only."""
