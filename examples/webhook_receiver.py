#!/usr/bin/env python3
"""Hears of tasks: checks that messages are comfyd's, and knows one that comes twice. Nothing but Python.

    export WEBHOOK_SECRETS="whsec_$(openssl rand -base64 32)"     # the same for comfyd
    python3 webhook_receiver.py                                   # listens on port 9000, or on PORT

Then create tasks with "webhook_url": "https://<where this is reached>/". For one on your own machine start comfyd with
OUTBOUND_ALLOW_PRIVATE=127.0.0.0/8 COMFYD_OUTBOUND__HTTP=true COMFYD_OUTBOUND__PORTS=9000.
"""

import base64
import hashlib
import hmac
import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRETS = [base64.b64decode(secret.strip().removeprefix("whsec_")) for secret in os.environ["WEBHOOK_SECRETS"].split(",")]
TOLERANCE = 5 * 60  # seconds: an old message that somebody recorded is not taken
seen = set()  # a real receiver keeps these in its database, with what it did


def is_genuine(headers, body):
    """Whether one of our secrets signed exactly this (https://www.standardwebhooks.com)."""
    message_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not timestamp.isdigit() or abs(time.time() - int(timestamp)) > TOLERANCE:
        return False
    signed = f"{message_id}.{timestamp}.".encode() + body
    ours = ["v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode() for key in SECRETS]
    given = headers.get("webhook-signature", "").split()
    return any(hmac.compare_digest(one, other) for one in ours for other in given)


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if not is_genuine(self.headers, body):
            return self.answer(401)
        if self.headers["webhook-id"] not in seen:
            seen.add(self.headers["webhook-id"])
            message = json.loads(body)
            urls = [output["url"] for output in message["data"]["outputs"]]
            print(message["type"], message["data"]["task_id"], *urls, flush=True)
        self.answer(204)  # whatever is not 2xx is sent again

    def answer(self, status):
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "9000"))), Receiver)
    print("listening on", server.server_port, flush=True)
    server.serve_forever()
