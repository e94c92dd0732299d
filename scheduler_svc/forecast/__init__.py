"""Forecasts: a load played on a virtual clock, in a process of its own.

`reading` turns the contract's input into a `Load`, `writing` turns what was played into the
contract's result and rows of customers, `python -m scheduler_svc.forecast` plays one load, and
`desk` starts such processes, few at a time, and keeps their results for a while.
"""
