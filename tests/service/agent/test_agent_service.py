"""The service as a whole: schema, start-up, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from agent_svc.app import MIGRATIONS, build
from agent_svc.store import schema
from svckit.database import Database
from svckit.errors import StartError
from svckit.settings import load
from svckit.testing import in_process


async def test_migrations_and_tables_say_the_same(database_url: str) -> None:
    database = await Database.open(database_url, migrations=MIGRATIONS, name="agent")
    try:
        found = await database.run(
            lambda db: compare_metadata(MigrationContext.configure(db), schema.metadata)
        )
    finally:
        await database.close()
    assert found == []


def test_the_demo_path_never_imports_the_model_library_nor_that_of_tool_servers() -> None:
    code = (
        "import sys, agent_svc.app, agent_svc.models.demo;"
        "print([m for m in ('pydantic_ai', 'openai', 'anthropic', 'mcp') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def test_a_model_that_does_not_exist_is_refused_at_the_start(tmp_path: Path) -> None:
    config = tmp_path / "conveyor.toml"
    config.write_text('[agents.defaults]\nmodel = "nowhere:x"\n[store]\nurl = "memory:"\n')
    with pytest.raises(StartError, match=r"agents\.list\.main.*\[providers\.nowhere\]"):
        async with in_process(build, load(config, {})):
            pass


async def test_a_damaged_database_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "agent.db").write_bytes(b"this is not a database" * 100)
    config = tmp_path / "conveyor.toml"
    config.write_text(f'[store]\nurl = "sqlite:///{tmp_path}/data"\n')
    with pytest.raises(StartError, match="is damaged"):
        async with in_process(build, load(config, {})):
            pass
