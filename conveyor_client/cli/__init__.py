"""The `conveyor` command. A verb imports what it needs when it runs: start-up time counts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 well, 1 it failed, 2 it cannot start or was called wrongly.

    `arguments` is without the program's name; None means those of the process. Errors go to
    standard error as one line with the fix, never as a traceback.
    """
    from conveyor_client.cli.app import app
    from conveyor_client.cli.context import explain_failure

    try:
        app(args=list(arguments) if arguments is not None else None, prog_name="conveyor")
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        # The reader of our output left, for example `head`. Nothing more can be said to it.
        sys.stderr.close()
        code = 141
    except Exception as error:
        told = explain_failure(error)
        if told is None:
            raise
        from conveyor_client.cli.output import printable

        message, code = told
        print(f"error: {printable(message)}", file=sys.stderr)
    else:  # pragma: no cover  (typer exits by itself)
        code = 0
    sys.exit(code)
