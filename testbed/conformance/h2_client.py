"""The frames themselves, read by hyper-h2: SETTINGS, GOAWAY and RST_STREAM of the APNs simulator; PyJWT signs."""

import json
import socket
import ssl
import time

import h2.config
import h2.connection
import h2.events
import h2.settings
import jwt

from check import AT, check, done, file, read, script

STREAMS = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS


class Client:
    def __init__(self):
        context = ssl.create_default_context(cafile=file("ca.pem"))
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection(("localhost", AT["apns_port"]))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = context.wrap_socket(plain, server_hostname="localhost")
        self.socket.settimeout(3)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.events = []
        self.flush()

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def push(self, token, bearer, end=True, body=b'{"aps":{"alert":"ding"}}'):
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(
            stream,
            [
                (":method", "POST"),
                (":scheme", "https"),
                (":path", f"/3/device/{token}"),
                ("host", "localhost"),
                ("authorization", f"Bearer {bearer}"),
                ("apns-topic", "com.example.app"),
            ],
        )
        self.h2.send_data(stream, body, end_stream=end)
        return stream

    def until(self, wanted):
        """Reads events until one is wanted; gives it back."""
        while True:
            for n, event in enumerate(self.events):
                if wanted(event):
                    return self.events.pop(n)
            data = self.socket.recv(65536)
            if not data:
                return None
            self.events += self.h2.receive_data(data)
            self.flush()

    def status(self, stream):
        event = self.until(lambda e: isinstance(e, h2.events.ResponseReceived) and e.stream_id == stream)
        return dict(event.headers)[":status"]


def settings(event):
    return isinstance(event, h2.events.RemoteSettingsChanged) and STREAMS in event.changed_settings


key = read("apns-key.p8")
good = jwt.encode({"iss": AT["team_id"], "iat": int(time.time())}, key, algorithm="ES256", headers={"kid": AT["key_id"]})
script(apns={"rules": [{"token": "60", "answer": {"act": {"do": "goaway", "reason": "Shutdown"}}}]})

client = Client()
check("first SETTINGS", client.until(settings).changed_settings[STREAMS].new_value, 1)
stream = client.push("beef", "x.y.z")
client.flush()
check("bad token", client.status(stream), "403")
check("still one stream", client.h2.remote_settings.max_concurrent_streams, 1)
stream = client.push("beef", good)
client.flush()
check("good token", client.status(stream), "200")
check("second SETTINGS", client.until(settings).changed_settings[STREAMS].new_value, 1000)
streams = [client.push(f"{n:04x}", good) for n in range(90)]
client.flush()
check("90 at once", {client.status(stream) for stream in streams}, {"200"})

last = streams[-1]
lost = [client.push("60", good), client.push("61", good)]
client.flush()
goaway = client.until(lambda e: isinstance(e, h2.events.ConnectionTerminated))
check("GOAWAY", (goaway.error_code, goaway.last_stream_id, json.loads(goaway.additional_data)),
      (0, last, {"reason": "Shutdown"}))
answered = client.until(lambda e: isinstance(e, h2.events.ResponseReceived))
check("nothing above the last stream is answered", answered, None)

# A client that opens a second stream before the first valid token.
client = Client()
client.until(settings)
client.h2.remote_settings.update({STREAMS: 100})
client.h2.remote_settings.acknowledge()
first = client.push("beef", good, end=False, body=b'{"aps":')
second = client.push("beef", good)
client.flush()
reset = client.until(lambda e: isinstance(e, h2.events.StreamReset))
check("the second is refused", (reset.stream_id, reset.error_code), (second, 7))
client.h2.send_data(first, b'{"alert":"ding"}}', end_stream=True)
client.flush()
check("the first is not", client.status(first), "200")
done("hyper-h2 and PyJWT")
