"""The gRPC boundary: servers, channels, interceptors, statuses and resumable watches."""
