"""The verbs of `tasks`: other names for those about runs and flows."""

from __future__ import annotations

from conveyor_client.cli import flows, runs
from conveyor_client.cli.manual import Verbs

tasks_app = Verbs(no_args_is_help=True, help="Other names: runs, cancel, steer, flow.")

tasks_app.command("list")(runs.runs)
tasks_app.command("cancel")(runs.cancel)
tasks_app.command("steer")(runs.steer)
tasks_app.add_typer(flows.flow_app, name="flow")
