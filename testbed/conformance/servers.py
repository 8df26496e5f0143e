"""Peal's APNs client against servers that nobody here wrote: hyper-h2 in many moods, and nghttpd if it is installed."""

import asyncio
import collections
import json
import os
import pathlib
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import trustme

CODES = h2.settings.SettingCodes
DIR = pathlib.Path(tempfile.mkdtemp())
failures = 0


def expect(what, is_, wanted):
    global failures
    if is_ != wanted:
        failures += 1
        print(f"MISMATCH {what}: {is_!r}, wanted {wanted!r}", file=sys.stderr)


class Mood:
    """How a server behaves. `pushed` counts what it processed, by device token."""

    settings = {CODES.MAX_CONCURRENT_STREAMS: 1000}
    window = None

    def __init__(self):
        self.pushed = collections.Counter()
        self.connections = 0
        self.seen = 0

    def request(self, peer, stream, token):
        """A whole request has come."""
        self.pushed[token] += 1
        peer.answer(stream, 200)


class Peer(asyncio.Protocol):
    def __init__(self, mood):
        self.mood = mood
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.paths, self.bodies, self.muted = {}, collections.Counter(), False
        self.are_first_settings_acknowledged = False

    def connection_made(self, transport):
        self.transport = transport
        self.mood.connections += 1
        self.h2.local_settings = h2.settings.Settings(client=False, initial_values=self.mood.settings)
        self.h2.initiate_connection()
        if self.mood.window:
            # An update counts from when the client has acknowledged it; until then it may send what it may by default.
            self.h2.update_settings({CODES.INITIAL_WINDOW_SIZE: self.mood.window})
        self.flush()

    def data_received(self, data):
        if self.muted:
            return
        try:
            events = self.h2.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            expect("the client keeps to the protocol", str(error), None)
            self.transport.close()
            return
        for event in events:
            match event:
                case h2.events.SettingsAcknowledged():
                    self.are_first_settings_acknowledged = True
                case h2.events.RequestReceived():
                    headers = dict(event.headers)
                    expect("method", headers[":method"], "POST")
                    expect("bearer", headers["authorization"].split(" ")[0], "bearer")
                    self.paths[event.stream_id] = headers[":path"]
                case h2.events.DataReceived():
                    self.bodies[event.stream_id] += len(event.data)
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case h2.events.StreamEnded():
                    self.mood.seen += 1
                    self.mood.request(self, event.stream_id, self.paths[event.stream_id].removeprefix("/3/device/"))
        self.flush()

    def answer(self, stream, status, body=b"", pieces=1, trailers=False):
        self.h2.send_headers(stream, [(":status", str(status)), ("apns-id", "x")], end_stream=not body)
        size = -(-len(body) // pieces) or 1
        for at in range(0, len(body), size):
            end = at + size >= len(body) and not trailers
            self.h2.send_data(stream, body[at : at + size], end_stream=end, pad_length=7)
        if body and trailers:
            self.h2.send_headers(stream, [("checksum", "0")], end_stream=True)

    def flush(self):
        self.transport.write(self.h2.data_to_send())


class Obliging(Mood):
    pass


class NarrowAtFirst(Mood):
    """As Apple: one stream until the first answer, then many."""

    settings = {CODES.MAX_CONCURRENT_STREAMS: 1}

    def request(self, peer, stream, token):
        super().request(peer, stream, token)
        if self.seen == 1:
            peer.h2.update_settings({CODES.MAX_CONCURRENT_STREAMS: 1000})


class Narrowing(Mood):
    """Lowers its limit in the middle."""

    def request(self, peer, stream, token):
        super().request(peer, stream, token)
        if self.seen == 50:
            peer.h2.update_settings({CODES.MAX_CONCURRENT_STREAMS: 10})


class Trickling(Mood):
    """Takes bodies a few bytes at a time."""

    window = 16

    def request(self, peer, stream, token):
        expect("body", peer.bodies[stream] > 3000, True)
        super().request(peer, stream, token)


class Leaving(Mood):
    """GOAWAY after every 100th request, which names it as the last; what is above was not processed."""

    def request(self, peer, stream, token):
        if peer.muted:
            return
        super().request(peer, stream, token)
        if self.seen % 100 == 0:
            peer.flush()
            peer.h2.close_connection(last_stream_id=stream)
            peer.muted = True
            peer.flush()
            asyncio.get_running_loop().call_later(0.05, peer.transport.close)


class Refusing(Mood):
    """REFUSED_STREAM for every third request."""

    def request(self, peer, stream, token):
        if self.seen % 3 == 0:
            peer.h2.reset_stream(stream, h2.errors.ErrorCodes.REFUSED_STREAM)
        else:
            super().request(peer, stream, token)


class Failing(Mood):
    """Takes the push and breaks the stream: nobody can know."""

    def request(self, peer, stream, token):
        self.pushed[token] += 1
        peer.h2.reset_stream(stream, h2.errors.ErrorCodes.INTERNAL_ERROR)


class Hanging(Mood):
    """Takes the push and breaks the connection."""

    def request(self, peer, stream, token):
        self.pushed[token] += 1
        peer.transport.abort()


class Silent(Mood):
    """Takes the push and says nothing."""

    def request(self, peer, stream, token):
        self.pushed[token] += 1


class Gone(Mood):
    """410 with a body in padded pieces and trailers."""

    def request(self, peer, stream, token):
        body = json.dumps({"reason": "Unregistered", "timestamp": 1700000000123}).encode()
        peer.answer(stream, 410, body, pieces=9, trailers=True)


class Babbling(Mood):
    """A refusal whose body is no JSON and has no end."""

    def request(self, peer, stream, token):
        peer.answer(stream, 503, b"<html>" * 9000, pieces=40) if len(self.pushed) == 0 else None


class Pinging(Mood):
    """Pings, and changes its settings, with every answer."""

    def request(self, peer, stream, token):
        peer.h2.ping(b"12345678")
        # hyper-h2 takes any acknowledgement for that of the oldest change of each setting.
        if peer.are_first_settings_acknowledged:
            peer.h2.update_settings({CODES.HEADER_TABLE_SIZE: 128 * (self.seen % 32)})
        super().request(peer, stream, token)


async def push(port, **options):
    program = [os.environ["TESTBED"], "push", "--apns", f"localhost:{port}", "--ca", str(DIR / "ca.pem")]
    for name, value in options.items():
        program += [f"--{name.replace('_', '-')}", str(value)]
    child = await asyncio.create_subprocess_exec(*program, stdout=subprocess.PIPE)
    out, _ = await child.communicate()
    expect("exit code", child.returncode, 0)
    return json.loads(out)["outcomes"]


async def against(kind, wanted, once=True, **options):
    """Pushes to a server of this mood; `once`: each token was processed exactly once."""
    mood = kind()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(DIR / "server.pem")
    context.set_alpn_protocols(["h2"])
    server = await asyncio.get_running_loop().create_server(lambda: Peer(mood), "127.0.0.1", 0, ssl=context)
    outcomes = await push(server.sockets[0].getsockname()[1], **options)
    server.close()
    expect(f"{kind.__name__} outcomes", outcomes, wanted)
    if once:
        expect(f"{kind.__name__} processed", (len(mood.pushed), set(mood.pushed.values())), (options["count"], {1}))
    return mood


async def hyper_h2():
    await against(Obliging, {"accepted": 500}, count=500, together=100)
    await against(NarrowAtFirst, {"accepted": 300}, count=300, together=100)
    await against(Narrowing, {"accepted": 300}, count=300, together=100)
    await against(Trickling, {"accepted": 20}, count=20, together=5, text=3000)
    mood = await against(Leaving, {"accepted": 500}, count=500, together=30, connections=2)
    expect("new connections after GOAWAY", mood.connections > 2, True)
    await against(Refusing, {"accepted": 30}, count=30)
    # Fewer than open the breaker.
    await against(Failing, {"ambiguous connection_lost": 8}, count=8, together=5)
    await against(Hanging, {"ambiguous connection_lost": 5}, count=5)
    await against(Silent, {"ambiguous timeout": 3}, count=3, together=3, timeout_ms=500)
    await against(Gone, {"address_gone Unregistered 1700000000123": 20}, once=False, count=20, together=5)
    await against(Babbling, {"retry_later answer_incomplete": 3}, once=False, count=3)
    await against(Pinging, {"accepted": 200}, count=200, together=20)


async def nghttpd():
    for streams in (1, 100, 1000):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = await asyncio.create_subprocess_exec(
            "nghttpd", "--echo-upload", "-a", "127.0.0.1", "-m", str(streams), str(port),
            str(DIR / "key.pem"), str(DIR / "chain.pem"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                await asyncio.sleep(0.05)
        outcomes = await push(port, count=3000, together=200)
        expect(f"nghttpd with {streams} streams", outcomes, {"accepted": 3000})
        server.terminate()
        await server.wait()


def certificates():
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(DIR / "ca.pem")
    leaf.private_key_and_cert_chain_pem.write_to_path(DIR / "server.pem")
    leaf.private_key_pem.write_to_path(DIR / "key.pem")
    (DIR / "chain.pem").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))


certificates()
asyncio.run(hyper_h2())
print("ok       hyper-h2 as a server" if failures == 0 else "FAILED   hyper-h2 as a server")
if shutil.which("nghttpd"):
    before = failures
    asyncio.run(nghttpd())
    print("ok       nghttpd" if failures == before else "FAILED   nghttpd")
else:
    print("skipped  nghttpd: not installed")
shutil.rmtree(DIR)
sys.exit(0 if failures == 0 else 1)
