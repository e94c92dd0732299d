"""The one line that a service says when it does not start."""

from __future__ import annotations

import pytest

from svckit.service import _refuse


@pytest.mark.parametrize("problem", ["agent: a.db is damaged", "a.db is\ndamaged"])
def test_the_name_of_the_service_is_said_once(
    problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stores say it too, and `docker compose logs` a third time."""
    with pytest.raises(SystemExit) as ended:
        _refuse("agent", problem)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "agent: a.db is damaged\n"
