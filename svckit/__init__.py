"""What every service shares: settings, telemetry, gRPC, errors, worker loop, test helpers."""

import os

# gRPC reads these once, when it is imported. No service forks, and with fork support on it would
# log a line for each child process; what it has to say otherwise also comes as an error.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
