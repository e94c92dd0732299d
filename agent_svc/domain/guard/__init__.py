"""The delegation guard, decided purely: what a reply says, and what is done about it.

`detect` is what others import: the detectors and the facts they hold a reply against. `ladder`
decides what follows a reply that was caught, and `watch` which text may be shown before the reply
is whole.
"""
