"""Secrets by reference: a setting names an environment variable or a file, never the secret."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from svckit.errors import StartError


def read_secret(key: str, *, env: str, file: str, environ: Mapping[str, str] | None = None) -> str:
    """Return the secret that `<key>_env` or `<key>_file` refers to, without white space around it.

    Raises `StartError` naming the setting when it cannot be had, or is empty.
    """
    if file:
        return read_secret_file(f"{key}_file", file)
    secret = (os.environ if environ is None else environ).get(env, "")
    if not secret.strip():
        raise StartError(f"{key}_env: the environment variable {env} is not set")
    return secret.strip()


def read_secret_file(key: str, file: str) -> str:
    """Return the secret in the file that the setting `key` names, without white space around it.

    Raises `StartError` naming the setting when it cannot be read, or is empty.
    """
    path = Path(file).expanduser()
    try:
        secret = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise StartError(f"{key}: {path} cannot be read: {why}") from None
    if not secret.strip():
        raise StartError(f"{key}: {path} is empty")
    return secret.strip()
