"""The manual: what `--help` and the reference say beyond docstrings and options.

By the command's path without `conveyor`. An example is a command as it is typed, and its effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Page:
    """What belongs to one command: paragraphs, examples with their meaning, special exit codes."""

    about: tuple[str, ...] = ()
    examples: tuple[tuple[str, str], ...] = ()
    exits: Mapping[int, str] = field(default_factory=dict)


_ROOT = Page(
    about=(
        "The commands that look at a suite or talk to it call its gateway: the one that "
        "conveyor.toml in this directory describes, else the one on 127.0.0.1:50050. Options of "
        "all commands stand before the command; each setting can also come from the environment, "
        "as CONVEYOR_ with its path, for example CONVEYOR_GATEWAY__HTTP=127.0.0.1:9090.",
        "Lists print tables for people, and with --json the messages of the contract. What goes "
        "wrong is told on standard error in one line, with the trace of the failed call below it.",
    ),
    examples=(
        ("conveyor up", "start the four services here, with data in ./data"),
        ('conveyor send --wait "Do two things: compare prices, draft a summary"', "ask something"),
        ("conveyor --config prod.toml lanes", "look at the suite that a file describes"),
        ("conveyor --address gw.example:50050 --token-file t.txt --tls runs", "at one elsewhere"),
        ("conveyor COMMAND --help", "the page of a command"),
    ),
)

_PAGE_BY_PAGE = (
    "One page at a time: --limit says how long it is, and when there is more the last line says "
    "how to get the next one, with the same filters."
)

_PAGES: Mapping[str, Page] = {
    "up": Page(
        about=(
            "Each service is a process of its own; one that dies is started again, and when that "
            "does not help everything stops. Logs of the services are shown from warnings on. On "
            "Ctrl-C or SIGTERM turns hand their work back within 10 seconds, and go on at the next "
            "start; a second signal does not wait for them.",
        ),
        examples=(
            ("conveyor up", "with the settings of conveyor.toml, or without any"),
            ("conveyor --config prod.toml up --verbose", "with another file, and with all logs"),
        ),
        exits={
            0: "stopped by a signal",
            1: "a service ended again and again",
            2: "a service cannot start, or the configuration cannot be used",
        },
    ),
    "demo": Page(
        examples=(
            ("conveyor demo", "a delegated request from beginning to end, offline"),
            ("conveyor demo --json", "the same for programs"),
        ),
        exits={0: "the request was answered", 1: "it was not"},
    ),
    "chat": Page(
        about=(
            "Messages are queued one after the other; a second one does not wait until the first "
            "is answered. Input from a pipe is answered to its end.",
        ),
        examples=(
            ("conveyor chat", "with your own session"),
            ("conveyor chat --agent writer", "with another agent"),
        ),
    ),
    "send": Page(
        about=(
            "Without --wait it returns as soon as the message is stored, with the ids of run and "
            "session and where the message stands in line.",
        ),
        examples=(
            ('conveyor send "What is new?"', "queue it, print where it stands"),
            ('conveyor send --wait "Do two things: a, b"', "and follow it to the answer"),
            ("cat report.md | conveyor send --wait -", "a message from a file"),
            ('conveyor send --queue-mode steer "shorter"', "tell it to the turn at work"),
        ),
        exits={1: "with --wait: the run failed. Else as everywhere: no answer, or refused"},
    ),
    "watch": Page(
        about=("It goes on when services are started again, without a gap and without repeating.",),
        examples=(
            ("conveyor watch", "the ends of all sub-agents, from now on"),
            ("conveyor watch --session agent:main:http:direct:local --descendants", "a session"),
            ("conveyor watch --flow FLOW --from-start --json", "a spawn tree, for programs"),
        ),
    ),
    "command": Page(
        about=(
            "The slash may be left out. With --session only what belongs to that conversation can "
            "be named.",
        ),
        examples=(
            ("conveyor command /help", "which commands there are"),
            ("conveyor command status", "what goes on"),
            ("conveyor command subagents list", "the sub-agents of your conversation"),
        ),
    ),
    "sessions": Page(
        about=(_PAGE_BY_PAGE,),
        examples=(
            ("conveyor sessions", "who talks to us, last used first"),
            ("conveyor sessions agent:main:http:direct:local", "what was said in one"),
            ("conveyor sessions agent:main:http:direct:local --reset", "begin afresh, as /new"),
        ),
    ),
    "runs": Page(
        about=("A run is one unit of work: a message, or what it spawned.", _PAGE_BY_PAGE),
        examples=(
            ("conveyor runs", "the newest fifty"),
            ("conveyor runs --state running --state suspended", "what is at work or waits"),
            ("conveyor runs --lane subagent --limit 10 --json", "for programs"),
            ("conveyor runs RUN", "one with its task, its answer and its trace"),
        ),
    ),
    "cancel": Page(
        about=("What has ended already stays as it is; cancelling again changes nothing.",),
        examples=(('conveyor cancel RUN --reason "not needed any more"', "stop it"),),
    ),
    "steer": Page(
        about=(
            "A turn at work takes it at its next step; a run that waits for children is woken. One "
            "that waits for a person's answer is not.",
        ),
        examples=(('conveyor steer RUN "only the last quarter"', "change its mind"),),
    ),
    "flow list": Page(
        about=("A flow is a message with everything that it spawned.", _PAGE_BY_PAGE),
        examples=(
            ("conveyor flow list", "every spawn tree"),
            ("conveyor flow list --with-children --state running", "those with sub-agents at work"),
        ),
    ),
    "flow show": Page(
        about=(
            "Below the tree stands its trace: the id, and where to see it if the suite has "
            "telemetry.ui_url.",
        ),
        examples=(
            ("conveyor flow show FLOW", "the tree"),
            ("conveyor flow show FLOW --json", "the same for programs"),
        ),
    ),
    "flow cancel": Page(
        about=("Returns when that is stored; a run that is at work ends a moment later.",),
        examples=(('conveyor flow cancel FLOW --reason "too dear"', "stop all of it"),),
    ),
    "questions": Page(
        about=(
            "Tools that change things, and harnesses in permission mode ask, wait for an answer. "
            "Without a command those that are open are listed.",
        ),
        examples=(("conveyor questions", "what is open"),),
    ),
    "questions list": Page(
        about=(_PAGE_BY_PAGE,),
        examples=(
            ("conveyor questions list", "what is open"),
            ("conveyor questions list --state answered --state expired", "what was"),
        ),
    ),
    "questions answer": Page(
        about=("Its number is enough where only one open question has it.",),
        examples=(
            ('conveyor questions answer 3 "allow once"', "by number and name of the option"),
        ),
    ),
    "lanes": Page(
        about=(
            "Global lanes are shared pools with a limit; every session has a lane of its own with "
            "one run at a time.",
        ),
        examples=(
            ("conveyor lanes", "who holds how many of which slots"),
            ("conveyor lanes --all", "with the lanes of sessions that have work"),
        ),
    ),
    "lanes set": Page(
        about=("Lowering stops nothing that runs. It stays until --reset, also after restarts.",),
        examples=(
            ("conveyor lanes set main --limit 8", "eight at a time"),
            ("conveyor lanes set main --limit 0", "pause: nothing new starts"),
            ("conveyor lanes set main --reset", "as configured again"),
        ),
    ),
    "why": Page(
        about=(
            "All reasons in order: what is before it in its conversation, which lane is full and "
            "who holds the slots, which limit of a provider, which children. Then the estimate of "
            "its start, and what that rests on.",
        ),
        examples=(("conveyor why RUN", "why does it not start?"),),
    ),
    "forecast": Page(
        about=(
            "It is the same code that decides for real, on a clock that nobody waits for. Nothing "
            "is sent to a model. Times are numbers with ms, s, m, h or d; without one, seconds.",
        ),
        examples=(
            ("conveyor forecast --preset seven", "seven customers, four slots, five seconds each"),
            ("conveyor forecast --customers 1000 --turn p50=2s,p90=8s --limit 50", "a burst"),
            ("conveyor forecast --rate 10/min --for 2h --children 3", "a load with sub-agents"),
        ),
    ),
    "agents": Page(
        about=("With their models and what they may spawn, as configured.",),
        examples=(("conveyor agents", "who answers here"),),
    ),
    "model list": Page(
        about=("A model that was never probed may delegate badly.",),
        examples=(("conveyor model list", "which models there are"),),
    ),
    "model probe": Page(
        examples=(
            ("conveyor model probe local:qwen3", "all prompts once"),
            ("conveyor model probe demo --tier natural --repetitions 3", "one tier, three times"),
        ),
    ),
    "acp spawn": Page(
        examples=(
            ("conveyor acp spawn claude", "open a session, wait for nothing"),
            ('conveyor acp spawn codex "mend the tests" --cwd /srv/shop', "and give it a task"),
            (
                "conveyor acp spawn claude --bind agent:main:http:direct:local --permissions ask",
                "let it answer a conversation, and ask there",
            ),
        ),
        exits={1: "the session could not be opened, or its turn failed"},
    ),
    "acp prompt": Page(
        examples=(
            ('conveyor acp prompt SESSION "now the documents"', "and follow its work"),
            ('conveyor acp prompt SESSION --no-wait "go on"', "only queue it"),
        ),
        exits={1: "the turn failed, or it was refused"},
    ),
    "acp sessions": Page(
        about=(_PAGE_BY_PAGE,),
        examples=(
            ("conveyor acp sessions", "those that are open"),
            ("conveyor acp sessions --state closed --state failed", "those that are not"),
        ),
    ),
    "acp show": Page(
        about=("Also where it works, and what its permission mode lets it do unasked.",),
        examples=(("conveyor acp show SESSION", "everything about one"),),
    ),
    "acp cancel": Page(
        about=("Cancelling again, or when no turn is at work, changes nothing.",),
        examples=(("conveyor acp cancel SESSION", "stop what it does now"),),
    ),
    "acp close": Page(
        about=("Nothing of it goes on running. Closing it again changes nothing.",),
        examples=(("conveyor acp close SESSION", "end it"),),
    ),
    "acp set": Page(
        about=("What a harness offers is shown by `conveyor acp show`.",),
        examples=(
            ("conveyor acp set SESSION --permissions ask", "ask before it changes anything"),
            ("conveyor acp set SESSION --turn-timeout 1800", "half an hour for a turn"),
        ),
    ),
    "acp serve": Page(
        about=(
            "For editors and other clients of the Agent Client Protocol, which start this command "
            "themselves. Ends when the client closes its side.",
        ),
        examples=(("conveyor acp serve --agent main", "as an editor starts it"),),
    ),
    "acp doctor": Page(
        about=(
            "In order: enabled, found, version, starts, answers, may log in, permissions make "
            "sense, directories exist. With what to do about each that fails.",
        ),
        examples=(
            ("conveyor acp doctor", "those that are configured"),
            ("conveyor acp doctor codex", "one"),
        ),
        exits={0: "all is well", 1: "something is not, or could not be asked"},
    ),
    "acp harnesses": Page(
        about=("With the command that each needs, and whether this suite may use it.",),
        examples=(("conveyor acp harnesses", "which coding agents are known"),),
    ),
    "doctor": Page(
        about=("It asks what runs and tries what does not; nothing is changed.",),
        examples=(
            ("conveyor doctor", "is everything well?"),
            ("conveyor doctor --json", "the same for programs"),
        ),
        exits={0: "all is well", 1: "something is not"},
    ),
    "config check": Page(
        about=("Every problem is named with its key. Nothing is started.",),
        examples=(("conveyor --config prod.toml config check", "before it is put to use"),),
        exits={0: "it can be used"},
    ),
    "config show": Page(
        about=("A password in the address of a store is left out. Secrets are never shown.",),
        examples=(
            ("conveyor config show", "with defaults and what the environment says"),
            ("conveyor config show --json", "the same for programs"),
        ),
    ),
    "version": Page(
        about=("When the suite does not answer, that of this command is printed all the same.",),
        examples=(
            ("conveyor version", "of both sides"),
            ("conveyor version --client", "without a suite"),
        ),
    ),
}

_OTHER_NAMES = {
    "tasks list": "runs",
    "tasks cancel": "cancel",
    "tasks steer": "steer",
    "tasks flow list": "flow list",
    "tasks flow show": "flow show",
    "tasks flow cancel": "flow cancel",
}


def page_of(command_path: str) -> Page:
    """Return the page of a command, for example of `conveyor flow show`; empty without one."""
    name = command_path.partition(" ")[2]
    if not name:
        return _ROOT
    page = _PAGES.get(_OTHER_NAMES.get(name, name), Page())
    if name not in _OTHER_NAMES:
        return page
    first = f"conveyor {_OTHER_NAMES[name]}"
    shown = tuple((text.replace(first, f"conveyor {name}"), what) for text, what in page.examples)
    return replace(page, examples=shown)
