"""Brings a database to the newest schema, and knows without Alembic when there is nothing to do.

Importing Alembic takes a noticeable part of the time in which a service is to be healthy, and on
almost every start the schema is at head already. So the revision files are read as text first.

A migrations directory holds `versions/*.py` as Alembic writes them; an `env.py` is not needed.
"""

from __future__ import annotations

import re
from pathlib import Path

import sqlalchemy as sa

from svckit.errors import StartError

_REVISION = re.compile(r"""^revision\b[^=]*=\s*["']([^"']+)["']""", re.MULTILINE)
_DOWN = re.compile(r"""^down_revision\b[^=]*=\s*["']([^"']+)["']""", re.MULTILINE)


def upgrade(connection: sa.Connection, migrations: Path, name: str, where: str) -> bool:
    """Migrate inside the transaction of `connection`; return whether anything was done.

    `name` and `where`: whose database it is and where it is kept, for the words of a refusal.
    Raises `StartError` when the database is at a revision that this release does not have.
    """
    known, head = _revisions(migrations)
    at = _current(connection)
    if at == head:
        return False
    if at is not None and at not in known:
        raise StartError(
            f"{name}: {where} has schema {at}, this release knows up to {head}: it was written by "
            "a newer one; run that, or restore a backup"
        )
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    config = Config()
    # Percent signs are interpolation in Alembic's configuration.
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)
    with EnvironmentContext(
        config, script, fn=lambda revision, _: script._upgrade_revs("head", revision)
    ) as environment:
        # The caller's transaction holds everything, so a failed migration leaves no trace.
        environment.configure(connection=connection, transactional_ddl=False)
        environment.run_migrations()
    return True


def _revisions(migrations: Path) -> tuple[set[str], str]:
    known: set[str] = set()
    below: set[str] = set()
    for path in sorted((migrations / "versions").glob("*.py")):
        text = path.read_text("utf-8")
        if found := _REVISION.search(text):
            known.add(found[1])
        if found := _DOWN.search(text):
            below.add(found[1])
    heads = known - below
    if len(heads) != 1:
        raise RuntimeError(f"{migrations} must have exactly one head, has {sorted(heads)}")
    return known, heads.pop()


def _current(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
