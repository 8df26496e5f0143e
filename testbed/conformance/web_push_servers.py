"""Peal's web push client against what nobody here wrote: http-ece decrypts, PyJWT verifies, and web-push-testing takes pushes."""

import base64
import contextlib
import http.server
import json
import os
import pathlib
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

import http_ece
import jwt
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

DIR = pathlib.Path(tempfile.mkdtemp())
failures = 0


def expect(what, is_, wanted):
    global failures
    if is_ != wanted:
        failures += 1
        print(f"MISMATCH {what}: {is_!r}, wanted {wanted!r}", file=sys.stderr)


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def from_base64url(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def point(key):
    encoding, form = serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    return key.public_key().public_bytes(encoding, form)


def authority():
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(DIR / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("localhost").configure_cert(context)
    return context


TLS = authority()
VAPID = ec.generate_private_key(ec.SECP256R1())
(DIR / "vapid.pem").write_bytes(
    VAPID.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
)


def send(subscription, push, key=None):
    """The outcome by which Peal ends."""
    (DIR / "subscription.json").write_text(json.dumps(subscription))
    (DIR / "push.json").write_text(json.dumps(push))
    arguments = ["--subscription", "subscription.json", "--push", "push.json", "--ca", "ca.pem"]
    arguments += ["--key", key or "vapid.pem"]
    done = subprocess.run(
        [os.environ["TESTBED"], "web-push", *arguments], cwd=DIR, capture_output=True, text=True, timeout=60
    )
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    return done.stdout.strip()


class PushService(http.server.BaseHTTPRequestHandler):
    """A push service with one browser."""

    protocol_version = "HTTP/1.1"
    browser = ec.generate_private_key(ec.SECP256R1())
    auth = os.urandom(16)
    origin = ""
    taken = []
    answer = (201, {}, b"")

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        status, headers, text = self.answer
        try:
            self.taken.append(self.check(body))
        except Exception as error:  # whatever a library finds wrong
            expect("a request is right", repr(error), None)
            status = 400
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def check(self, body):
        expect("the encoding", self.headers["content-encoding"], "aes128gcm")
        expect("the body is of one record", len(body) <= 4096, True)
        scheme, parameters = self.headers["authorization"].split(" ", 1)
        expect("the scheme", scheme, "vapid")
        parameters = dict(part.strip().split("=", 1) for part in parameters.split(","))
        expect("the key", parameters["k"], base64url(point(VAPID)))
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), from_base64url(parameters["k"]))
        claims = jwt.decode(parameters["t"], key, algorithms=["ES256"], audience=self.origin)
        expect("the subject", claims["sub"], "mailto:operators@example.com")
        expect("the token lives for a day at most", 0 < claims["exp"] - time.time() <= 24 * 3600, True)
        opened = http_ece.decrypt(body, private_key=self.browser, auth_secret=self.auth, version="aes128gcm")
        wanted = ("ttl", "urgency", "topic")
        return json.loads(opened), {name: self.headers[name] for name in wanted if name in self.headers}


def with_http_ece():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), PushService)
    server.socket = TLS.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    PushService.origin = f"https://localhost:{server.server_port}"
    subscription = {
        "endpoint": f"{PushService.origin}/push/abc",
        "keys": {"p256dh": base64url(point(PushService.browser)), "auth": base64url(PushService.auth)},
    }

    def taken(push):
        PushService.taken.clear()
        expect("a push is accepted", send(subscription, push), "accepted")
        expect("it is sent once", len(PushService.taken), 1)
        return PushService.taken[0] if PushService.taken else ({}, {})

    payload, headers = taken(
        {
            "title": "Schöne Grüße ✉",
            "body": "x" * 1000,
            "url": "https://example.com/orders/42",
            "data": {"order": "42"},
            "badge": 3,
            "collapse_key": "order-42",
            "ttl": 60,
            "priority": "normal",
        }
    )
    expect(
        "the payload",
        payload,
        {
            "web_push": 8030,
            "notification": {
                "title": "Schöne Grüße ✉",
                "body": "x" * 1000,
                "navigate": "https://example.com/orders/42",
                "tag": "order-42",
                "data": {"order": "42"},
            },
            "app_badge": 3,
        },
    )
    expect("the headers", headers, {"ttl": "60", "urgency": "normal", "topic": "order-42"})
    around = '{"web_push":8030,"notification":{"title":"","tag":"k"}}'
    longest = "x" * (3993 - len(around))
    payload, _ = taken({"title": longest, "collapse_key": "k"})
    expect("the longest payload", payload["notification"]["title"] == longest, True)
    expect("one byte more", send(subscription, {"title": longest + "x", "collapse_key": "k"}), "rejected too_large")
    for status, headers, text, outcome in [
        (404, {}, b"", "address_gone not_found 0"),
        (410, {}, b'{"reason":"Unregistered"}', "address_gone gone 0"),
        (413, {}, b"", "rejected too_large"),
        (429, {"retry-after": "7"}, b"", "retry_later too_many_requests"),
        (503, {}, b"<html>", "retry_later server_error"),
        (401, {}, b"", "retry_later unauthorized"),
        (403, {}, b'{"reason":"BadJwtToken"}', "credential_trouble BadJwtToken"),
        (401, {}, b'{"errno":109,"message":"VAPID public key mismatch"}', "rejected vapid_key_mismatch"),
    ]:
        PushService.answer = (status, headers, text)
        expect(f"an answer {status}", send(subscription, {"title": "x"}), outcome)
    server.shutdown()


def pipe(source, sink):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def tls_before(port):
    """A port that speaks TLS before one that does not."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            plain, _ = listener.accept()
            with contextlib.suppress(OSError):
                near = TLS.wrap_socket(plain, server_side=True)
                far = socket.create_connection(("localhost", port))
                threading.Thread(target=pipe, args=(near, far), daemon=True).start()
                threading.Thread(target=pipe, args=(far, near), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


def with_web_push_testing():
    program = pathlib.Path(os.environ["WEB_PUSH_TESTING"])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(["node", str(program), str(port)], cwd=DIR, stdout=subprocess.DEVNULL)

    def ask(path, body):
        request = urllib.request.Request(
            f"http://localhost:{port}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        return urllib.request.urlopen(request, timeout=10).read()

    try:
        for _ in range(100):
            with contextlib.suppress(urllib.error.URLError):
                ask("/status", {})
                break
            time.sleep(0.1)
        public = base64url(point(VAPID))
        made = json.loads(ask("/subscribe", {"userVisibleOnly": "true", "applicationServerKey": public}))["data"]
        path = made["endpoint"].split(f":{port}", 1)[1]
        subscription = {"endpoint": f"https://localhost:{tls_before(port)}{path}", "keys": made["keys"]}
        client = {"clientHash": made["clientHash"]}
        expect("web-push-testing accepts", send(subscription, {"title": "Hello"}), "accepted")
        messages = json.loads(ask("/get-notifications", client))["data"]["messages"]
        titles = [json.loads(message)["notification"]["title"] for message in messages]
        expect("web-push-testing decrypts", titles, ["Hello"])
        other = ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value
        (DIR / "other.key").write_text(base64url(other.to_bytes(32, "big")))
        # It answers 400 to a key that the browser did not subscribe with; real push services answer 401 or 403.
        expect("another key", send(subscription, {"title": "x"}, "other.key"), "rejected bad_request")
        ask(f"/expire-subscription/{made['clientHash']}", {})
        expect("an expired subscription", send(subscription, {"title": "x"}), "address_gone gone 0")
    finally:
        process.terminate()
        process.wait()


with_http_ece()
with_web_push_testing()
shutil.rmtree(DIR)
print("FAILED   push services" if failures else "ok       push services")
sys.exit(1 if failures else 0)
