"""`/acp doctor`, `/acp install` and `/acp help`: which coding agents work here, and how."""

from __future__ import annotations

from collections.abc import Mapping

from conveyor.acp.v1 import acp_service_pb2 as acp
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from gateway_svc.commands.asked import Answer, Asked, Handler, Refused, Services
from gateway_svc.domain.commands.acp_health import doctor_text, install_text
from gateway_svc.domain.commands.guide import command_forms, help_text
from gateway_svc.domain.commands.problem import Problem

_PAGE = 500


class AcpHealth:
    """Handlers of the commands about harnesses."""

    def __init__(self, services: Services) -> None:
        self._do = services

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handlers by the names of the grammar."""
        return {"acp doctor": self.doctor, "acp install": self.install, "acp help": self.help}

    async def doctor(self, asked: Asked) -> Answer:
        """Examine one harness, or the default one, or all that may be spawned."""
        request = gw.AcpDoctorRequest(harness_id=asked.get("harness").lower())
        answer = await self._do.operations.acp_doctor(request, asked.principal)
        return Answer(doctor_text(answer.report), answer)

    async def install(self, asked: Asked) -> Answer:
        """Say how to install one; installs nothing."""
        found = await self._do.operations.list_harnesses(
            acp.ListHarnessesRequest(page_size=_PAGE), asked.principal
        )
        text = install_text(found.harnesses, asked.get("harness"))
        if isinstance(text, Problem):
            raise Refused(text.text)
        return Answer(text, found)

    async def help(self, asked: Asked) -> Answer:
        """Say what can be said to coding agents."""
        about = asked.get("command").removeprefix("/").removeprefix("acp ")
        text = help_text(f"acp {about}".strip())
        if isinstance(text, Problem):
            raise Refused(text.text)
        return Answer(text, command_forms())
