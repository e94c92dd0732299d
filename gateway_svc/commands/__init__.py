"""Does what slash commands say, beside the lanes, with the use cases that every other call has."""

from gateway_svc.commands.runner import Commands

__all__ = ["Commands"]
