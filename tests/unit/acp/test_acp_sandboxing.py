"""What is inside the walls of a sandbox, and in which order it is put there."""

from __future__ import annotations

from pathlib import PurePosixPath as P

import pytest

from acp_svc.domain.permissions import PermissionMode
from acp_svc.domain.sandboxing import Walls, needs_sandbox, probe, shut_in


@pytest.mark.parametrize(
    ("mode", "needed"),
    [
        (PermissionMode.APPROVE_READS, True),
        (PermissionMode.DENY_ALL, True),
        (PermissionMode.ASK, False),
        (PermissionMode.APPROVE_ALL, False),
    ],
)
def test_those_who_may_only_read_are_shut_in(mode: PermissionMode, needed: bool) -> None:
    assert needs_sandbox(mode) is needed


def mounts(walls: Walls) -> list[tuple[str, ...]]:
    """Return the mounts in their order, as (how, ..., where)."""
    words = shut_in(["harness", "--acp"], walls)
    assert words[0] == walls.bwrap
    assert words[-3:] == ["--", "harness", "--acp"]
    assert words[-5:-3] == ["--chdir", str(walls.cwd)]
    found, rest = [], words[1:-5]
    while rest:
        size = {
            "--ro-bind": 3,
            "--ro-bind-try": 3,
            "--symlink": 3,
            "--bind": 3,
            "--tmpfs": 2,
            "--dev": 2,
            "--proc": 2,
            "--cap-drop": 2,
            "--cap-add": 2,
            "--setenv": 3,
        }.get(rest[0], 1)
        found.append(tuple(rest[:size]))
        rest = rest[size:]
    return found


def test_everything_can_be_read_and_its_own_written() -> None:
    made = mounts(Walls("/usr/bin/bwrap", P("/home/me/work"), state=(P("/home/me/.claude"),)))
    assert made == [
        ("--die-with-parent",),
        ("--unshare-pid",),
        ("--cap-drop", "ALL"),
        ("--ro-bind", "/", "/"),
        ("--dev", "/dev"),
        ("--proc", "/proc"),
        ("--ro-bind-try", "/proc/sys", "/proc/sys"),
        ("--setenv", "TMPDIR", "/tmp"),
        ("--tmpfs", "/tmp"),
        ("--bind", "/home/me/.claude", "/home/me/.claude"),
    ]


def test_the_directory_cannot_be_written_even_within_what_is_its_own() -> None:
    made = mounts(Walls("bwrap", P("/h/.x/work"), state=(P("/h/.x"),)))
    assert made[-2:] == [("--bind", "/h/.x", "/h/.x"), ("--ro-bind", "/h/.x/work", "/h/.x/work")]
    # And what is its own can be written within the directory.
    made = mounts(Walls("bwrap", P("/h"), state=(P("/h/.x"),)))
    assert made[-1] == ("--bind", "/h/.x", "/h/.x")
    same = mounts(Walls("bwrap", P("/h/.x"), state=(P("/h/.x"),)))
    assert same[-1] == ("--ro-bind", "/h/.x", "/h/.x")


def test_what_it_needs_among_temporary_files_is_shown_before_what_lies_deeper() -> None:
    made = mounts(
        Walls(
            "bwrap",
            P("/tmp/job/work"),
            state=(P("/tmp/job/home/.x"),),
            needed=(P("/tmp/job/bin/harness"), P("/usr/bin/python")),
        )
    )
    assert made[-3:] == [
        ("--tmpfs", "/tmp"),
        ("--ro-bind", "/tmp/job", "/tmp/job"),
        ("--bind", "/tmp/job/home/.x", "/tmp/job/home/.x"),
    ]


def test_new_files_of_its_home_are_its_own_and_what_is_there_can_be_read_only() -> None:
    walls = Walls(
        "bwrap",
        P("/h/work"),
        state=(P("/h/.x"),),
        home=P("/h"),
        in_home=(P("/h/.x"), P("/h/work")),
        links_in_home=((P("/h/l"), "work"),),
    )
    assert mounts(walls)[-5:] == [
        ("--tmpfs", "/h"),
        ("--ro-bind-try", "/h/.x", "/h/.x"),
        ("--ro-bind-try", "/h/work", "/h/work"),
        ("--symlink", "work", "/h/l"),
        ("--bind", "/h/.x", "/h/.x"),
    ]
    # But not where that is the directory it works in: what is denied there must not seem done.
    at_home = Walls("bwrap", P("/h"), state=(P("/h/.x"),), home=P("/h"), in_home=(P("/h/.x"),))
    assert mounts(at_home)[-1] == ("--bind", "/h/.x", "/h/.x")
    assert not any(mount[:2] == ("--tmpfs", "/h") for mount in mounts(at_home))


def test_sockets_that_could_do_anything_are_covered() -> None:
    made = mounts(Walls("bwrap", P("/w"), hidden=(P("/run/docker.sock"),)))
    assert made[-1] == ("--ro-bind", "/dev/null", "/run/docker.sock")


def test_directories_of_sockets_are_empty_but_for_what_it_works_with() -> None:
    state, work = P("/run/user/1/x"), P("/run/user/1/work")
    made = mounts(Walls("bwrap", work, state=(state,), emptied=(P("/run/user"),)))
    assert made[-3:] == [
        ("--tmpfs", "/run/user"),
        ("--bind", str(state), str(state)),
        ("--ro-bind", str(work), str(work)),
    ]


def test_root_keeps_only_the_right_to_read_files_of_others() -> None:
    base = mounts(Walls("bwrap", P("/w")))
    as_root = mounts(Walls("bwrap", P("/w"), as_root=True))
    assert [mount for mount in as_root if mount not in base] == [("--cap-add", "CAP_DAC_OVERRIDE")]


def test_the_probe_asks_for_what_is_used_later() -> None:
    words = shut_in(["x"], Walls("bwrap", P("/w")))
    tried = probe("bwrap")
    assert tried[: tried.index("--tmpfs")] == words[: words.index("--tmpfs")]
