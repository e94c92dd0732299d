"""What every service shares: settings, telemetry, gRPC, errors, worker loop, test helpers."""
