#!/usr/bin/env python3
"""A scripted coding agent: raw ACP over stdin and stdout, without the SDK that the service uses.

It does what the prompt says, so a test can bring about whatever a real harness once did. Start it
with `[sys.executable, ".../tests/harnesses/scripted.py", *flags]`; flags may also stand in the
environment variable `SCRIPTED_FLAGS`. It needs nothing but Python.

A prompt is a list of directives, one per line (or separated by ` ;; `), done in order. A line that
is no directive is answered with `heard: LINE`. What the agent says arrives as message chunks.

    say:TEXT              says TEXT
    think:TEXT            says TEXT as a thought
    count                 says `prompts: N`: how many prompts this session saw, this one included
    history               says all earlier prompts of the session, joined by ` | `
    cwd, mode, model      says where it works, its mode, its model
    env NAME              says `NAME=VALUE` or `NAME is not set`
    option NAME           says the value of one of its options
    read PATH             asks (kind read), then says `read PATH: TEXT`
    peek PATH             the same without asking
    write PATH TEXT       asks (kind edit, with a diff), then writes; says `wrote PATH` or
                          `denied PATH` or `failed PATH: why`
    ask-nothing PATH TEXT writes without asking
    run CMD               asks (kind execute, rawInput.command), runs it with a shell in its cwd,
                          says `ran: OUTPUT`
    tool TITLE            a tool call that needs no permission, pending to completed
    ask KIND TITLE        asks and does nothing; says `allowed OPTION_ID`, `denied OPTION_ID` or
                          `cancelled`; KIND `none` sends no kind
    asks N                asks N times at once, says `answered: ID, ID, ...` in the order of asking
    ask-and-go TITLE      asks and does not wait for the answer
    ask-empty             asks with an empty list of options
    plan                  a plan of three entries, then the same with one done
    usage                 a usage update (1200 of 200000 tokens, 0.25 USD), and usage in the answer
    commands              an update with the commands it offers
    to-mode ID            goes to another mode by itself and tells
    slow SECONDS          works so long, one chunk `.` about every 0.1 s; stops when cancelled
    silent SECONDS        the same without a word
    hang                  works until cancelled
    big N                 one update of N bytes
    spam N                N small updates
    garbage               lines on its output that are no messages: text, half JSON, a list
    unknown-update        an update of a kind that nobody knows
    unknown-request       a request that nobody knows; says `client: CODE`
    fs-write PATH TEXT    asks the client to write (fs/write_text_file); says `client: CODE MESSAGE`
    terminal CMD          asks the client for a terminal; says `client: CODE MESSAGE`
    stderr TEXT           a line on its error output
    stop REASON           ends the turn with this stop reason, also one that nobody knows
    error CODE TEXT       ends the turn with this error
    login-lost            ends the turn with -32000
    crash [CODE]          ends the process at once (default: killed by signal 9)
    drop                  closes its output and stays
    late TEXT             an update after the turn ended
    child                 starts a process in its group; says `pid: N`
    stray                 starts a process that left the group and the session; says `pid: N`
    stray-clean           the same with an empty environment
    never-end             the turn never ends, cancelled or not

A second prompt of a session while one is at work ends the process with code 99 and
`overlapping prompts` on its error output: nothing may ever let that happen.

Flags:

    --version               prints `scripted 1.0` and ends (`--no-version` before it: ends with 2)
    --exit-at WHEN[:CODE]   start, initialize, new, load, prompt: ends there, code 1 by default
    --hang-at WHEN          the same places: never answers
    --error-at WHEN:CODE    the same places: answers with this error
    --auth-at WHEN          initialize, new or prompt: answers -32000
    --need-env NAME         --auth-at counts only where this variable is not set (default: prompt)
    --authenticate          with --need-env: the variable counts only after `authenticate`
    --protocol N|none       the version it answers, or none
    --id-prefix TEXT        what its ids of sessions begin with
    --noise                 says a banner on its output before anything
    --stderr TEXT           says this on its error output when it starts; `$NAME` is replaced
    --modes A,B,...         offers modes; in `auto`, `yolo` and `bypass` it does not ask
    --mode A                the one it starts in (default: the first)
    --mode-option           offers them as an option of category `mode`, not as modes
    --stubborn              stays in its mode whatever it is told, and tells so
    --refuse-mode           answers an error when told a mode
    --models A,B            offers models, as an option of category `model`
    --old-models            offers them the old way: `models` and `session/set_model`
    --options NAME=A,B      offers another option (may be given again)
    --resume, --load        can do that; sessions are kept in --state
    --state DIR             where (default: ~/.scripted)
    --resume-broken         offers resume and answers -32601
    --forgetful             answers -32002 to every resume and load
    --bare                  permission requests name only the tool call
    --no-start              no tool_call update before a permission request
    --no-allow              offers only options that reject
    --quiet-cancel          answers a cancelled prompt before its permission question is answered
    --ignore-cancel         goes on when cancelled
    --ignore-eof            stays when its input is closed
    --deaf                  ignores SIGTERM and the end of its input
    --child, --stray, --stray-clean  starts such a process with the first session
    --pids FILE             writes `NAME PID` of itself and of all that it starts, a line each
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from secrets import token_hex

SKIPPING = ("auto", "yolo", "bypass")
SWITCHES = """
    version no-version noise mode-option stubborn refuse-mode old-models resume load resume-broken
    forgetful bare no-start no-allow quiet-cancel ignore-cancel ignore-eof deaf child stray
    stray-clean authenticate
"""
OPTIONS = [
    {"optionId": "yes-once", "name": "Allow", "kind": "allow_once"},
    {"optionId": "yes-always", "name": "Always allow", "kind": "allow_always"},
    {"optionId": "no-once", "name": "Reject", "kind": "reject_once"},
]


class Failure(Exception):
    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Session:
    def __init__(self, session_id, cwd, flags, kept=None):
        kept = kept or {}
        self.id = session_id
        self.cwd = cwd
        self.seen = kept.get("seen", [])
        self.mode = flags.mode
        self.model = (flags.models or [""])[0]
        self.options = {name: values[0] for name, values in flags.options.items()}
        self.working = False
        self.cancelled = threading.Event()


class Agent:
    def __init__(self, flags):
        self.flags = flags
        self.sessions = {}
        self.lock = threading.Lock()
        self.waiting = {}
        self.number = 0
        self.authenticated = False
        self.calls = 0

    # --- the wire ---

    def send(self, message):
        data = json.dumps({"jsonrpc": "2.0", **message}) + "\n"
        with self.lock:
            try:
                sys.stdout.write(data)
                sys.stdout.flush()
            except (BrokenPipeError, ValueError):
                os._exit(0)

    def update(self, session, what, /, **fields):
        self.send(
            {
                "method": "session/update",
                "params": {"sessionId": session.id, "update": {"sessionUpdate": what, **fields}},
            }
        )

    def say(self, session, text, kind="agent_message_chunk"):
        self.update(session, kind, content={"type": "text", "text": text})

    def ask_client(self, method, params):
        """Start a request; returns what to wait for."""
        with self.lock:
            self.number += 1
            number = f"r{self.number}"
            waiting = self.waiting[number] = [threading.Event(), None]
        self.send({"id": number, "method": method, "params": params})
        return waiting

    def run(self):
        for line in sys.stdin:
            if not line.strip():
                continue
            message = json.loads(line)
            if "method" not in message:
                waiting = self.waiting.pop(message["id"])
                waiting[1] = message
                waiting[0].set()
            elif message["method"] == "session/prompt":
                self.begin(message)
            else:
                self.answer(message)
        if self.flags.ignore_eof or self.flags.deaf:
            while True:
                time.sleep(60)
        os._exit(0)

    def answer(self, message):
        params = message.get("params") or {}
        method = message["method"]
        try:
            handler = getattr(self, "on_" + method.replace("session/", ""), None)
            if handler is None:
                raise Failure(-32601, "Method not found")
            result = handler(params)
        except Failure as failure:
            error = {"code": failure.code, "message": str(failure)}
            if "id" in message:
                self.send({"id": message["id"], "error": error})
            return
        if "id" in message:
            self.send({"id": message["id"], "result": result})

    def at(self, when):
        """Do what a flag says about this moment."""
        flags = self.flags
        place, _, code = flags.exit_at.partition(":")
        if place == when:
            print(f"scripted: gave up at {when}", file=sys.stderr, flush=True)
            os._exit(int(code or 1))
        if flags.hang_at == when:
            print(f"scripted: hanging at {when}", file=sys.stderr, flush=True)
            while True:
                time.sleep(60)
        place, _, code = flags.error_at.partition(":")
        if place == when:
            raise Failure(int(code or -32603), f"error at {when}")
        logged_in = flags.need_env and os.environ.get(flags.need_env)
        if flags.authenticate and not self.authenticated:
            logged_in = False
        if flags.auth_at == when and not logged_in:
            raise Failure(-32000, "Authentication required")

    # --- requests ---

    def on_initialize(self, params):
        self.at("initialize")
        flags = self.flags
        result = {
            "protocolVersion": flags.protocol,
            "agentInfo": {"name": "scripted", "title": "Scripted agent", "version": "1.0"},
            "authMethods": self.auth_methods(),
            "agentCapabilities": {
                "loadSession": flags.load,
                "sessionCapabilities": (
                    {"resume": {}} if flags.resume or flags.resume_broken else {}
                ),
            },
        }
        if flags.protocol is None:
            del result["protocolVersion"]
        return result

    def auth_methods(self):
        methods = [{"id": "login", "name": "Log in"}] if self.flags.auth_at else []
        if self.flags.authenticate:
            variables = [{"name": self.flags.need_env}]
            methods.append({"id": "key", "name": "Key", "type": "env_var", "vars": variables})
        return methods

    def on_authenticate(self, params):
        if params["methodId"] != "key":
            raise Failure(-32603, "a person has to log in")
        self.authenticated = True
        return {}

    def on_new(self, params):
        self.at("new")
        session_id = f"{self.flags.id_prefix}s-{token_hex(6)}"
        session = Session(session_id, params["cwd"], self.flags)
        self.sessions[session.id] = session
        self.keep(session)
        for kind in ("child", "stray", "stray_clean"):
            if getattr(self.flags, kind):
                setattr(self.flags, kind, False)
                self.start_process(kind.replace("_", "-"))
        return {"sessionId": session.id, **self.offers(session)}

    def on_load(self, params):
        if not self.flags.load:
            raise Failure(-32601, "Method not found")
        session = self.reopen(params)
        for text in session.seen:
            self.say(session, text, "user_message_chunk")
            self.say(session, f"replayed: {text}")
        return self.offers(session)

    def on_resume(self, params):
        if not self.flags.resume or self.flags.resume_broken:
            raise Failure(-32601, "Method not found")
        return self.offers(self.reopen(params))

    def reopen(self, params):
        self.at("load")
        file = self.flags.state / f"{params['sessionId']}.json"
        if self.flags.forgetful or not file.exists():
            raise Failure(-32002, "Resource not found")
        kept = json.loads(file.read_text())
        session = Session(params["sessionId"], params["cwd"], self.flags, kept)
        self.sessions[session.id] = session
        return session

    def keep(self, session):
        if self.flags.load or self.flags.resume or self.flags.resume_broken:
            self.flags.state.mkdir(parents=True, exist_ok=True)
            file = self.flags.state / f"{session.id}.json"
            file.write_text(json.dumps({"seen": session.seen}))

    def on_set_mode(self, params):
        session = self.of(params)
        self.set_mode(session, params["modeId"])
        return {}

    def set_mode(self, session, mode):
        if self.flags.refuse_mode or mode not in self.flags.modes:
            raise Failure(-32602, "no such mode")
        if not self.flags.stubborn:
            session.mode = mode
        if not self.flags.mode_option:
            self.update(session, "current_mode_update", currentModeId=session.mode)

    def on_set_config_option(self, params):
        session = self.of(params)
        name, value = params["configId"], params["value"]
        if name == "mode" and self.flags.mode_option:
            self.set_mode(session, value)
        elif name == "model" and value in self.flags.models and not self.flags.old_models:
            session.model = value
        elif value in self.flags.options.get(name, ()):
            session.options[name] = value
        else:
            raise Failure(-32602, "no such option")
        return {"configOptions": self.config_options(session)}

    def on_set_model(self, params):
        session = self.of(params)
        if not self.flags.old_models or params["modelId"] not in self.flags.models:
            raise Failure(-32601, "Method not found")
        session.model = params["modelId"]
        return {}

    def on_cancel(self, params):
        if not self.flags.ignore_cancel:
            self.of(params).cancelled.set()

    def of(self, params):
        session = self.sessions.get(params.get("sessionId"))
        if session is None:
            raise Failure(-32602, "no such session")
        return session

    def offers(self, session):
        flags = self.flags
        result = {}
        if flags.modes and not flags.mode_option:
            result["modes"] = {
                "currentModeId": session.mode,
                "availableModes": [{"id": mode, "name": mode.title()} for mode in flags.modes],
            }
        if flags.models and flags.old_models:
            result["models"] = {
                "currentModelId": session.model,
                "availableModels": [{"modelId": m, "name": m.title()} for m in flags.models],
            }
        if options := self.config_options(session):
            result["configOptions"] = options
        return result

    def config_options(self, session):
        flags = self.flags
        found = []
        if flags.modes and flags.mode_option:
            found.append(select("mode", session.mode, flags.modes, "mode"))
        if flags.models and not flags.old_models:
            found.append(select("model", session.model, flags.models, "model"))
        for name, values in flags.options.items():
            found.append(select(name, session.options[name], values))
        return found

    # --- prompts ---

    def begin(self, message):
        try:
            session = self.of(message["params"])
        except Failure as failure:
            error = {"code": failure.code, "message": str(failure)}
            self.send({"id": message["id"], "error": error})
            return
        if session.working:
            print("scripted: overlapping prompts", file=sys.stderr, flush=True)
            os._exit(99)
        session.working = True
        session.cancelled.clear()
        threading.Thread(target=self.prompted, args=(session, message), daemon=True).start()

    def prompted(self, session, message):
        text = "\n".join(b["text"] for b in message["params"]["prompt"] if b["type"] == "text")
        turn = Turn(self, session, text)
        try:
            self.at("prompt")
            session.seen.append(text)
            self.keep(session)
            stop = turn.work()
            answer = {"result": {"stopReason": stop, **turn.extra}}
        except Failure as failure:
            answer = {"error": {"code": failure.code, "message": str(failure)}}
        except Exception:
            # A fault of this file: never to be taken for what a test wanted.
            traceback.print_exc()
            os._exit(70)
        session.working = False
        self.send({"id": message["id"], **answer})
        for line in turn.late:
            self.say(session, line)

    def start_process(self, kind):
        # It holds none of our pipes, so it lives on unseen.
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", "import time; time.sleep(600)"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=kind != "child",
            env={} if kind == "stray-clean" else None,
        )
        self.tell_pid(kind, process.pid)
        return process.pid

    def tell_pid(self, name, pid):
        if self.flags.pids:
            with open(self.flags.pids, "a") as file:
                file.write(f"{name} {pid}\n")


def select(name, value, values, category=None):
    option = {
        "id": name,
        "name": name.title(),
        "type": "select",
        "currentValue": value,
        "options": [{"value": one, "name": one.title()} for one in values],
    }
    return option | ({"category": category} if category else {})


class Turn:
    """One prompt at work."""

    def __init__(self, agent, session, text):
        self.agent = agent
        self.session = session
        self.text = text
        self.extra = {}
        self.late = []
        self.stop = "end_turn"

    def work(self):
        lines = [part for line in self.text.splitlines() for part in line.split(" ;; ")]
        for line in lines:
            line = line.strip()
            if not line:
                continue
            self.do(line)
            if self.session.cancelled.is_set():
                return "cancelled"
            if self.stop != "end_turn":
                break
        return self.stop

    def do(self, line):
        word, _, rest = line.partition(" ")
        if line.startswith("say:"):
            self.say(line[4:])
        elif line.startswith("think:"):
            self.agent.say(self.session, line[6:], "agent_thought_chunk")
        elif handler := getattr(self, "do_" + word.replace("-", "_"), None):
            handler(rest)
        else:
            self.say(f"heard: {line}")

    def say(self, text):
        self.agent.say(self.session, text)

    def update(self, what, /, **fields):
        self.agent.update(self.session, what, **fields)

    def path(self, name):
        return Path(self.session.cwd) / name

    # --- about itself ---

    def do_count(self, _):
        self.say(f"prompts: {len(self.session.seen)}")

    def do_history(self, _):
        self.say(" | ".join(self.session.seen[:-1]))

    def do_cwd(self, _):
        self.say(self.session.cwd)

    def do_mode(self, _):
        self.say(f"mode: {self.session.mode}")

    def do_model(self, _):
        self.say(f"model: {self.session.model}")

    def do_env(self, name):
        value = os.environ.get(name)
        self.say(f"{name} is not set" if value is None else f"{name}={value}")

    def do_option(self, name):
        self.say(f"{name}: {self.session.options.get(name)}")

    # --- tools ---

    def start_call(self, title, kind, **more):
        self.agent.calls += 1
        call = f"call-{self.agent.calls}-{token_hex(3)}"
        fields = {"toolCallId": call, "title": title, **more}
        if kind:
            fields["kind"] = kind
        return fields

    def ask_start(self, fields, options=OPTIONS):
        """Send a permission request; returns what to wait for, or None when nobody is asked."""
        flags = self.agent.flags
        if not flags.no_start:
            self.update("tool_call", status="pending", **fields)
        if self.session.mode in SKIPPING:
            return None
        if flags.no_allow:
            options = [one for one in options if one["kind"].startswith("reject")]
        call = {"toolCallId": fields["toolCallId"]} if flags.bare else fields
        return self.agent.ask_client(
            "session/request_permission",
            {"sessionId": self.session.id, "toolCall": call, "options": options},
        )

    def outcome(self, waiting):
        """Return (allowed, option id); the id is empty when it was told that it is cancelled."""
        if waiting is None:
            return True, "unasked"
        while not waiting[0].wait(0.02):
            if self.agent.flags.quiet_cancel and self.session.cancelled.is_set():
                return False, ""
        result = waiting[1].get("result") or {}
        chosen = (result.get("outcome") or {}).get("optionId", "")
        return chosen.startswith("yes"), chosen

    def ended(self, fields, status, text=""):
        content = [{"type": "content", "content": {"type": "text", "text": text}}] if text else []
        self.update(
            "tool_call_update", toolCallId=fields["toolCallId"], status=status, content=content
        )

    def use(self, fields, name, work, ask=True):
        """Ask, do the work, tell what came of it."""
        if ask:
            allowed, _ = self.outcome(self.ask_start(fields))
            if not allowed:
                self.ended(fields, "failed", "refused")
                self.say(f"denied {name}")
                return
        else:
            self.update("tool_call", status="in_progress", **fields)
        try:
            text = work()
        except OSError as error:
            self.ended(fields, "failed", error.strerror)
            self.say(f"failed {name}: {error.strerror}")
            return
        self.ended(fields, "completed", text)
        self.say(text)

    def do_read(self, name, ask=True):
        fields = self.start_call(f"Read {name}", "read", locations=[{"path": str(self.path(name))}])
        self.use(fields, name, lambda: f"read {name}: {self.path(name).read_text()[:200]}", ask)

    def do_peek(self, name):
        self.do_read(name, ask=False)

    def do_write(self, rest, ask=True):
        name, _, text = rest.partition(" ")
        path = self.path(name)
        old = path.read_text() if path.exists() else None
        fields = self.start_call(
            f"Write {name}",
            "edit",
            locations=[{"path": str(path)}],
            rawInput={"file_path": str(path), "content": text},
            content=[{"type": "diff", "path": str(path), "oldText": old, "newText": text}],
        )

        def work():
            path.write_text(text)
            return f"wrote {name}"

        self.use(fields, name, work, ask)

    def do_ask_nothing(self, rest):
        self.do_write(rest, ask=False)

    def do_run(self, command):
        def work():
            done = subprocess.run(
                command,
                shell=True,
                cwd=self.session.cwd,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            return f"ran: {(done.stdout + done.stderr).strip()[:500]}"

        fields = self.start_call(f"`{command}`", "execute", rawInput={"command": command})
        self.use(fields, command, work)

    def do_tool(self, title):
        fields = self.start_call(title, "other")
        self.update("tool_call", status="pending", **fields)
        self.update("tool_call_update", toolCallId=fields["toolCallId"], status="in_progress")
        self.ended(fields, "completed", f"{title} done")

    def do_ask(self, rest):
        kind, _, title = rest.partition(" ")
        fields = self.start_call(title or "something", None if kind == "none" else kind)
        allowed, chosen = self.outcome(self.ask_start(fields))
        self.ended(fields, "completed" if allowed else "failed")
        self.say(f"{'allowed' if allowed else 'denied'} {chosen}" if chosen else "cancelled")

    def do_ask_and_go(self, title):
        self.ask_start(self.start_call(title or "something", "edit"))

    def do_asks(self, number):
        calls = [self.start_call(f"Thing {n + 1}", "edit") for n in range(int(number))]
        waiting = [self.ask_start(fields) for fields in calls]
        self.say("answered: " + ", ".join(self.outcome(w)[1] or "cancelled" for w in waiting))

    def do_ask_empty(self, _):
        fields = self.start_call("nothing to choose", "edit")
        _, chosen = self.outcome(self.ask_start(fields, options=[]))
        self.say(chosen or "cancelled")

    # --- other updates ---

    def do_plan(self, _):
        for status in ("in_progress", "completed"):
            entries = [
                {"content": "Look", "priority": "high", "status": status},
                {"content": "Think", "priority": "medium", "status": "pending"},
                {"content": "Act", "priority": "low", "status": "pending"},
            ]
            self.update("plan", entries=entries)

    def do_usage(self, _):
        self.update(
            "usage_update", used=1200, size=200_000, cost={"amount": 0.25, "currency": "USD"}
        )
        self.extra["usage"] = {"totalTokens": 1200, "inputTokens": 1000, "outputTokens": 200}

    def do_commands(self, _):
        commands = [{"name": "review", "description": "Looks at it again"}]
        self.update("available_commands_update", availableCommands=commands)

    def do_to_mode(self, mode):
        self.session.mode = mode
        self.update("current_mode_update", currentModeId=mode)

    def do_big(self, size):
        self.say("x" * int(size))

    def do_spam(self, number):
        for n in range(int(number)):
            self.say(f"{n},")

    def do_garbage(self, _):
        with self.agent.lock:
            sys.stdout.write(
                'npm WARN deprecated\n{"jsonrpc": "2.0", "id":\n[1, 2]\n42\n\n"text"\n'
            )
            sys.stdout.write('{"jsonrpc":"2.0","id":4711,"result":{}}\n{"jsonrpc":"2.0"}\n')
            sys.stdout.flush()

    def do_unknown_update(self, _):
        self.update("weather_update", forecast="rain")

    def ask_and_tell(self, method, params):
        waiting = self.agent.ask_client(method, {"sessionId": self.session.id, **params})
        waiting[0].wait()
        error = waiting[1].get("error")
        self.say(f"client: {error['code']} {error['message']}" if error else "client: ok")

    def do_unknown_request(self, _):
        self.ask_and_tell("session/sing", {})

    def do_fs_write(self, rest):
        name, _, text = rest.partition(" ")
        self.ask_and_tell("fs/write_text_file", {"path": str(self.path(name)), "content": text})

    def do_terminal(self, command):
        self.ask_and_tell("terminal/create", {"command": command})

    def do_stderr(self, text):
        print(text, file=sys.stderr, flush=True)

    # --- time and ends ---

    def do_slow(self, seconds, word="."):
        until = time.monotonic() + float(seconds or 600)
        while time.monotonic() < until:
            if word:
                self.say(word)
            if self.session.cancelled.wait(min(0.1, max(0.0, until - time.monotonic()))):
                return

    def do_silent(self, seconds):
        self.do_slow(seconds, word="")

    def do_hang(self, _):
        self.session.cancelled.wait()

    def do_never_end(self, _):
        while True:
            time.sleep(60)

    def do_stop(self, reason):
        self.stop = reason

    def do_error(self, rest):
        code, _, text = rest.partition(" ")
        raise Failure(int(code), text or "failed")

    def do_login_lost(self, _):
        raise Failure(-32000, "Authentication required")

    def do_crash(self, code):
        print("scripted: fatal: told to crash", file=sys.stderr, flush=True)
        if code:
            os._exit(int(code))
        os.kill(os.getpid(), signal.SIGKILL)

    def do_drop(self, _):
        with self.agent.lock:
            os.close(1)
            while True:
                time.sleep(60)

    def do_late(self, text):
        self.late.append(text)

    def do_child(self, _, kind="child"):
        self.say(f"pid: {self.agent.start_process(kind)}")

    def do_stray(self, _):
        self.do_child(_, "stray")

    def do_stray_clean(self, _):
        self.do_child(_, "stray-clean")


def parse(argv):
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for name in (
        "exit-at",
        "hang-at",
        "error-at",
        "auth-at",
        "need-env",
        "stderr",
        "mode",
        "pids",
        "id-prefix",
    ):
        parser.add_argument(f"--{name}", default="")
    for name in SWITCHES.split():
        parser.add_argument(f"--{name}", action="store_true")
    for name in ("modes", "models"):
        parser.add_argument(f"--{name}", type=lambda text: text.split(","), default=[])
    parser.add_argument("--options", action="append", default=[])
    parser.add_argument("--protocol", type=lambda n: None if n == "none" else int(n), default=1)
    parser.add_argument("--state", type=Path, default=Path.home() / ".scripted")
    flags = parser.parse_args([*shlex.split(os.environ.get("SCRIPTED_FLAGS", "")), *argv])
    flags.mode = flags.mode or (flags.modes or [""])[0]
    flags.options = {
        name: values.split(",") for name, _, values in (o.partition("=") for o in flags.options)
    }
    if flags.need_env and not flags.auth_at:
        flags.auth_at = "prompt"
    return flags


def main():
    flags = parse(sys.argv[1:])
    if flags.version:
        if flags.no_version:
            sys.exit(2)
        print("scripted 1.0")
        return
    agent = Agent(flags)
    if flags.stderr:
        print(os.path.expandvars(flags.stderr), file=sys.stderr, flush=True)
    if flags.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    agent.tell_pid("self", os.getpid())
    if flags.noise:
        print("Welcome to the scripted agent!", flush=True)
    try:
        agent.at("start")
    except Failure as failure:
        sys.exit(str(failure))
    agent.run()


if __name__ == "__main__":
    main()
