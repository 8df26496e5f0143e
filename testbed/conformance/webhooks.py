"""Peal's client for webhooks against receivers that verify with the libraries of Standard Webhooks: here that of Python, and in
webhooks.mjs that of JavaScript."""

import http.server
import json
import os
import pathlib
import ssl
import subprocess
import sys
import tempfile
import threading

import trustme
from standardwebhooks import Webhook, WebhookVerificationError

DIR = pathlib.Path(tempfile.mkdtemp())
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
COUNT = 20
failures = 0
received = []


def expect(what, is_, wanted):
    global failures
    if is_ != wanted:
        failures += 1
        print(f"MISMATCH {what}: {is_!r}, wanted {wanted!r}", file=sys.stderr)


class Receiver(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        received.append((dict(self.headers), body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


authority = trustme.CA()
authority.cert_pem.write_to_path(DIR / "ca.pem")
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
authority.issue_cert("localhost").configure_cert(context)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
server.socket = context.wrap_socket(server.socket, server_side=True)
threading.Thread(target=server.serve_forever, daemon=True).start()


def post(*more):
    url = f"https://localhost:{server.server_port}/hook?shop=1"
    command = [os.environ["TESTBED"], "post", "--url", url, "--ca", str(DIR / "ca.pem"), "--count", str(COUNT), *more]
    received.clear()
    outcomes = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["outcomes"]
    expect("outcomes", outcomes, {"accepted": COUNT})
    expect("requests", len(received), COUNT)


post("--secret", SECRET)
webhook = Webhook(SECRET)
ids = set()
for headers, body in received:
    event = webhook.verify(body, headers)
    expect("type", event["type"], "order.paid")
    ids.add(headers["webhook-id"])
    for changed in (body.replace(b"Gr", b"gr"), body + b" "):
        try:
            webhook.verify(changed, headers)
            expect("a changed body", "verified", "refused")
        except WebhookVerificationError:
            pass
expect("ids", len(ids), COUNT)

requests = DIR / "requests.json"
requests.write_text(json.dumps([[headers, body.decode()] for headers, body in received]))
javascript = subprocess.run(["node", os.environ["WEBHOOKS_MJS"], str(requests), SECRET], capture_output=True, text=True)
expect("verified in JavaScript", (javascript.returncode, javascript.stdout.strip()), (0, str(COUNT)))

post()
for headers, body in received:
    expect("the text of a chat", json.loads(body), {"text": "Paid"})
    expect("the signature of a chat", headers.get("webhook-signature"), None)

print("ok       standardwebhooks" if failures == 0 else f"FAILED   standardwebhooks: {failures} mismatches")
sys.exit(0 if failures == 0 else 1)
