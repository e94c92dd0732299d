"""What can go wrong with a tool server, in words for people and for models.

Kept apart from what speaks to servers, which imports the SDK.
"""

from __future__ import annotations


class ServerFailure(Exception):
    """Something went wrong. `why` completes a sentence that begins with the server: "it …"."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class ServerDown(ServerFailure):
    """It is not to be had: nothing was called."""


class Lost(ServerFailure):
    """It was lost during the call, which may or may not have happened."""


class Slow(ServerFailure):
    """It did not answer in time; the call may or may not have happened."""


class Broken(ServerFailure):
    """It answered with something that is no result."""


class ToolError(ServerFailure):
    """It refused the call. `why` is what the server says: untrusted."""
