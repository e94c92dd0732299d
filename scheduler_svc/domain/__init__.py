"""The rules, pure: no grpc, no asyncio, no clock, no I/O.

Everything here works on a `Kernel` in memory and gets the time as an argument. What must be stored
afterwards is collected in `Kernel.changes`; the engine commits it before anybody gets an answer.

Read in this order: `records` (what a run is), `lanes` (the two layers), `kernel` (the state and
its small verbs), then the use cases: `admission`, `leasing`, `turns`, `waiting`, `settling`,
`steering`, `sweeping`, and `recovery`.
"""
