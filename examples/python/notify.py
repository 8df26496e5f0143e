"""Sends notifications in every way that Peal has, and follows what becomes of them.

    pip install -r requirements.txt
    source …/peal.env        # `cargo demo` prints its path
    python notify.py
"""

import asyncio
import json
import os
import ssl
import urllib.request
import uuid

import nats
import nats.errors

APP = os.environ["PEAL_APP"]


def http(method, path, body=None):
    """Asks a gateway. An answer other than 2xx is an HTTPError; its body names the field and the rule."""
    request = urllib.request.Request(
        os.environ["PEAL_URL"] + path,
        method=method,
        data=json.dumps(body).encode() if body else None,
        headers={"Authorization": "Bearer " + os.environ["PEAL_KEY"], "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=15) as answer:
        return json.load(answer)


async def connect():
    """Connects as a service of the app, in the app's own NATS account."""
    tls = ssl.create_default_context(cafile=os.environ["NATS_CA"])
    if "NATS_CERT" in os.environ:  # Where the servers ask for a client's certificate.
        tls.load_cert_chain(os.environ["NATS_CERT"], os.environ["NATS_KEY"])

    async def complain(error):
        # What the app may not do is reported here and nowhere else: the call itself runs into its timeout.
        print("nats:", error)

    # With a .creds file: user_credentials=os.environ["NATS_CREDS"] in the place of nkeys_seed.
    return await nats.connect(os.environ["NATS_URL"], tls=tls, nkeys_seed=os.environ["NATS_NKEY"], error_cb=complain)


def notification(event_id, title):
    # The event id names what happened. However often it is sent, and by whatever way, it is delivered once.
    return {"event_id": event_id, "to": {"recipients": ["ann"]}, "class": "urgent", "push": {"title": title}}


async def follow(nc, event_ids):
    """Reads the status feed, a durable consumer: each batch goes to one of the app's services, again until acknowledged."""
    feed = await nc.jetstream(domain="peal").pull_subscribe_bind(f"svc_{APP}", stream="RECEIPTS")
    waiting, names, delivered = set(event_ids), {}, set()
    while waiting:
        try:
            messages = await feed.fetch(50, timeout=5)
        except nats.errors.TimeoutError:
            continue
        for message in messages:
            batch = json.loads(message.data)
            # Gateways write which notification an event became, workers what became of it, in any order.
            for each in batch.get("accepted", []):
                names[each["notification"]] = each["event_id"]
            for each in batch.get("receipts", []):
                if each["state"] == "delivered":
                    delivered.add(each["notification"])
            await message.ack()
        for event_id in waiting & {names.get(each) for each in delivered}:
            print("feed     delivered", event_id)
            waiting.remove(event_id)


async def main():
    order = uuid.uuid4()
    paid, packed, shipped = event_ids = [f"order-{order}-{what}" for what in ("paid", "packed", "shipped")]

    # 1. HTTP. 202: stored.
    accepted = http("POST", "/v1/notifications", notification(paid, "Your order is paid"))
    print("http     accepted", accepted["event_id"])

    # 2. JetStream. Acknowledged: stored, also while no gateway runs. A message that breaks a rule becomes a dead letter.
    nc = await connect()
    body = json.dumps(notification(packed, "Your order is packed")).encode()
    stored = await nc.jetstream().publish(f"send.{APP}", body, headers={"Nats-Msg-Id": packed})
    print("publish  stored in", stored.stream)

    # 3. A request. The answer is that of HTTP.
    body = json.dumps(notification(shipped, "Your order is on its way")).encode()
    answer = await nc.request(f"send.{APP}.now", body, timeout=15)
    if "Nats-Service-Error-Code" in (answer.headers or {}):
        raise SystemExit(f"request  refused {answer.data.decode()}")
    print("request  accepted", json.loads(answer.data)["event_id"])

    # 4. The status feed, until all three have reached a device.
    await asyncio.wait_for(follow(nc, event_ids), timeout=60)
    await nc.close()

    # 5. The status by event id, whichever way it was sent.
    for event_id in event_ids:
        for status in http("GET", f"/v1/notifications?event_id={event_id}")["notifications"]:
            for delivery in status["deliveries"]:
                print("status  ", event_id, delivery["recipient"], delivery["provider"], delivery["state"])


asyncio.run(main())
