"""Gives the gateway a telephone: a channel that pushes. Put this directory into `PYTHONPATH`.

What is sent to a conversation of the channel `whatsapp`, however it comes in, counts as written
there. What is delivered goes into the file that `TELEPHONE` names, a line of JSON each.
"""

import json
import os
import sys

if "gateway_svc" in sys.orig_argv:
    from gateway_svc import __main__ as program
    from gateway_svc import app
    from gateway_svc.domain.keys import parse_key
    from gateway_svc.domain.reply_route import ReplyAddress
    from gateway_svc.inbox import Inbox

    class Telephone:
        name = "whatsapp"
        file = os.open(os.environ["TELEPHONE"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        async def deliver(self, delivery):
            told = {"peer": delivery.address.peer, "text": delivery.text}
            os.write(self.file, json.dumps(told).encode() + b"\n")

    accept = Inbox.accept

    async def accept_from(self, inbound, request_id, principal, address=None, **more):
        key = parse_key(inbound.session_key) if inbound.session_key else None
        if key is not None and key.channel == Telephone.name:
            address = ReplyAddress(key.channel, key.peer)
        return await accept(self, inbound, request_id, principal, address, **more)

    Inbox.accept = accept_from
    # The program, where it was imported before, has its own name for it.
    app.build = program.build = app.builder([Telephone()])
