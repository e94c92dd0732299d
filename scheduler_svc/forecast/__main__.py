"""Plays one load: a serialised `ForecastInput` on standard input, the result on standard output.

The arguments are the seconds after which the process ends itself, whoever started it, and the bytes
of memory that it may take.

The output is three numbers (bytes of the result, bytes of the customers' keys, customers), then the
serialised `ForecastResult`, the keys on lines of their own, and the rows of `writing`.
"""

from __future__ import annotations

import gc
import hashlib
import os
import resource
import signal
import sys
import time
from typing import BinaryIO

from conveyor.scheduler.v1 import forecast_pb2 as pb
from scheduler_svc.domain.arrivals import Chance, Draw
from scheduler_svc.domain.foresight import foresee
from scheduler_svc.forecast import reading, writing

# Below the scheduler's own work, whatever a forecast costs.
NICENESS = 10


def main() -> None:
    """Entry point; see the module docstring."""
    seconds, memory = map(int, sys.argv[1:])
    signal.alarm(seconds)
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    # What is played has no cycles, and the process ends soon: looking for garbage is wasted.
    gc.disable()
    try:
        play(pb.ForecastInput.FromString(sys.stdin.buffer.read()), sys.stdout.buffer)
    except MemoryError:
        os._exit(writing.OUT_OF_MEMORY)  # there is no room for an orderly end
    # Taking a million runs apart would take longer than leaving them to the system.
    os._exit(0)


def play(given: pb.ForecastInput, to: BinaryIO) -> None:
    """Plays a resolved input and writes what happened."""
    begun = time.monotonic()
    load = reading.load(given)
    forecast = foresee(load, dice(given.seed))
    result = writing.result(load, forecast)
    result.compute_time.FromMicroseconds(round((time.monotonic() - begun) * 1_000_000))
    names = "\n".join(writing.keys(load)).encode()
    head = writing.HEAD.pack(result.ByteSize(), len(names), len(forecast.tally.arrival))
    to.write(head + result.SerializeToString() + names)
    writing.write_rows(forecast.tally, to)
    to.flush()


def dice(seed: int) -> Chance:
    """Numbers in [0, 1) that depend on the seed, the purpose and the count alone.

    So a load is the same one with other limits, whatever the order in which it is played.
    """
    key = seed.to_bytes(8, "big", signed=True)

    def chance(purpose: Draw, count: int) -> float:
        said = count.to_bytes(8, "big") + bytes((purpose,))
        digest = hashlib.blake2b(said, digest_size=8, key=key).digest()
        # 53 bits are what a float holds; more could be rounded up to 1.
        return float(int.from_bytes(digest, "big") >> 11) * 2.0**-53

    return chance


if __name__ == "__main__":
    main()
