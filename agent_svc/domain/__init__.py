"""The rules of a turn as pure functions: no gRPC, no event loop, no clock, no I/O.

A turn is a list of stored steps. `plan` says what comes next, `render` builds the prompt,
`reconcile` brings the history of a session in line with what the scheduler accepted. Everything
that calls them can crash between any two steps and go on from the stored list.
"""
