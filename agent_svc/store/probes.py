"""The newest probe report of each model at each base URL."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from agent_svc.domain.probe.verdict import Report
from agent_svc.store import schema as t
from svckit.database import Database

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Report)


class ProbeReports:
    """The store of probe reports."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def save(self, report: Report) -> None:
        """Store a report in the place of the one before. A newer one stays."""

        def save(db: sa.Connection) -> None:
            same = (t.probe_reports.c.model == report.model) & (
                t.probe_reports.c.base_url == report.base_url
            )
            newest = db.scalar(sa.select(t.probe_reports.c.end_us).where(same).with_for_update())
            if newest is not None and newest > report.ended_us:
                return
            db.execute(sa.delete(t.probe_reports).where(same))
            db.execute(
                sa.insert(t.probe_reports).values(
                    model=report.model,
                    base_url=report.base_url,
                    data=_encoder.encode(report),
                    end_us=report.ended_us,
                )
            )

        await self._db.run(save)

    async def all(self) -> dict[tuple[str, str], Report]:
        """Every report, by model and base URL. One that this build cannot read is left out."""

        def read(db: sa.Connection) -> dict[tuple[str, str], Report]:
            found: dict[tuple[str, str], Report] = {}
            for model, base_url, data in db.execute(
                sa.select(
                    t.probe_reports.c.model, t.probe_reports.c.base_url, t.probe_reports.c.data
                )
            ):
                try:
                    found[model, base_url] = _decoder.decode(data)
                except msgspec.MsgspecError:
                    continue  # written by another version: it counts as never probed
            return found

        return await self._db.run(read)
