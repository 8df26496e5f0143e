"""nats-py as a service of an app: the door, the status feed, and what a newcomer is told who does something wrong.

testbed/tests/security/foreign.rs starts the mesh, registers the recipient `ann` with one device, and says in the
environment where the server is and with which key the service identifies itself.
"""

import asyncio
import json
import logging
import os
import ssl

import nats
from nats.errors import NoRespondersError, TimeoutError
from nats.js.errors import NoStreamResponseError

from check import check, done

# asyncio has an opinion on how nats-py closes connections.
logging.disable(logging.WARNING)
APP = os.environ["PEAL_APP"]
FEED = f"svc_{APP}"
WITHIN_S = 30

# What the server reported about each connection, by the connection's name.
reported = {}


async def connect(name, at="PEAL_NATS", **more):
    reported[name] = []

    async def report(error):
        reported[name].append(str(error))

    tls = ssl.create_default_context(cafile=os.environ["PEAL_CA"])
    tls.load_cert_chain(os.environ["PEAL_CERT"], os.environ["PEAL_CERT_KEY"])
    settings = {"nkeys_seed": os.environ["PEAL_NKEY_FILE"], "error_cb": report, **more}
    return await nats.connect(os.environ[at], tls=tls, tls_hostname="localhost", name=name, **settings)


def notification(event, **more):
    return {"event_id": event, "to": {"recipients": ["ann"]}, "push": {"title": "Hi"}, **more}


def encoded(body):
    return json.dumps(body).encode()


async def eventually(what, attempt):
    """The first answer of `attempt` that is not None; other things of the mesh may take their time."""
    for _ in range(WITHIN_S * 10):
        if (answer := await attempt()) is not None:
            return answer
        await asyncio.sleep(0.1)
    raise SystemExit(f"FAILED   nats-py: {what} did not happen; the server said {reported}")


async def publishes(service):
    """JetStream publish: stored once, whatever is repeated. A bad item becomes a dead letter, which arrives as it is stored."""
    js = service.jetstream()
    letters = await service.subscribe("dead.>")
    first = await js.publish(f"send.{APP}", encoded(notification("one")), headers={"Nats-Msg-Id": "one"})
    check("the stream", (first.stream, bool(first.duplicate)), (f"INTAKE_{APP}", False))
    again = await js.publish(f"send.{APP}", encoded(notification("one")), headers={"Nats-Msg-Id": "one"})
    check("the repetition", (again.seq, again.duplicate), (first.seq, True))
    several = {"notifications": [notification("two"), notification("three", **{"class": "now"})]}
    stored = await js.publish(f"send.{APP}", encoded(several))
    letter = await letters.next_msg(timeout=WITHIN_S)
    headers = {name.lower(): value for name, value in letter.headers.items()}
    check("the letter's event", headers.get("peal-event-id"), "three")
    check("its place", (headers.get("peal-intake-sequence"), headers.get("peal-index")), (str(stored.seq), "1"))
    check("its reason", headers.get("peal-reason"), "refused")
    check("its detail", headers.get("peal-detail", "").startswith("notifications[1].class: "), True)


async def asks(service):
    """Requests are answered at once, as over HTTP."""
    answer = json.loads((await service.request(f"send.{APP}.now", encoded(notification("four")), timeout=WITHIN_S)).data)
    check("accepted", (answer["jobs"], answer["duplicates"], answer["event_id"]), (1, 0, "four"))
    refused = await service.request(f"send.{APP}.now", encoded(notification("five", **{"class": "now"})))
    check("refused", refused.headers.get("Nats-Service-Error-Code"), "422")
    check("the code", refused.headers.get("Nats-Service-Error"), "validation_failed")
    check("the field", json.loads(refused.data)["errors"][0]["field"], "class")


async def reads_feed(service):
    """The durable feed: every outcome once acknowledged, one that is given back comes again."""
    js = service.jetstream(domain="peal")
    feed = await js.pull_subscribe_bind(FEED, stream="RECEIPTS")
    seen, given_back = {}, None

    async def read():
        nonlocal given_back
        try:
            batch = await feed.fetch(10, timeout=1)
        except TimeoutError:
            return None
        for message in batch:
            if given_back is None:
                given_back = message.metadata.sequence.stream
                await message.nak()
                continue
            if message.metadata.sequence.stream == given_back:
                check("given back", message.metadata.num_delivered, 2)
            await message.ack_sync()
            told = json.loads(message.data)
            check("the app", told["app"], APP)
            for receipt in told.get("receipts", []):
                seen[receipt["notification"]] = (receipt["state"], receipt.get("reason"))
        ended = sorted(state for state, _ in seen.values() if state in ("delivered", "dead"))
        return ended if len(ended) == 4 else None

    ended = await eventually("every outcome", read)
    check("outcomes", ended, ["dead", "delivered", "delivered", "delivered"])
    check("the refused one", [reason for state, reason in seen.values() if state == "dead"], ["refused"])
    info = await feed.consumer_info()
    check("acknowledged", (info.num_ack_pending, info.config.durable_name), (0, FEED))


async def finds(service):
    """Peal's micro service, as any."""

    async def ask(verb):
        return json.loads((await service.request(f"$SRV.{verb}.peal-send", timeout=WITHIN_S)).data)

    ping, info, stats = await ask("PING"), await ask("INFO"), await ask("STATS")
    check("types", [one["type"].rsplit(".", 1)[1] for one in (ping, info, stats)], ["ping_response", "info_response", "stats_response"])
    check("one instance", len({one["id"] for one in (ping, info, stats)}), 1)
    check("names", {one["name"] for one in (ping, info, stats)}, {"peal-send"})
    check("endpoints", [one["subject"] for one in info["endpoints"]], ["send.*.now"])
    check("requests", stats["endpoints"][0]["num_requests"], 2)


async def is_told(name, mistake, wanted):
    """Makes a mistake over a connection of its own. The server must name it, and the act must not seem to succeed."""
    client = await connect(name)
    check(f"{name}: the error", await error_of(mistake(client)), TimeoutError)

    async def complaint():
        return reported[name] or None

    # nats-py writes what the server says in lower case.
    check(f"{name}: what the server says", (await eventually(name, complaint))[0], f"nats: permissions violation for {wanted.lower()}")
    await client.close()


async def makes_mistakes():
    """docs/accounts.md has a table of these."""
    body = encoded(notification("never"))

    def publish(subject):
        return lambda client: client.jetstream().publish(subject, body, timeout=1)

    def ask(subject):
        return lambda client: client.request(subject, body, timeout=1)

    def look_up(consumer, **domain):
        return lambda client: client.jetstream(**domain).consumer_info("RECEIPTS", consumer, timeout=1)

    info = "$JS.API.CONSUMER.INFO.RECEIPTS"
    # The account imports the door of its own app only.
    client = await connect("another app")
    check("another app", await error_of(publish("send.bank")(client)), NoStreamResponseError)
    check("another app, now", await error_of(ask("send.bank.now")(client)), NoRespondersError)
    await client.close()
    await is_told("a class in the subject", publish(f"send.{APP}.urgent"), f'publish to "send.{APP}.urgent"')
    await is_told("a region in the subject", ask(f"send.eu.{APP}.now"), f'publish to "send.eu.{APP}.now"')
    former = f"notify.push.eu.urgent.{APP}"
    await is_told("a subject of 0.1", publish(former), f'publish to "{former}"')
    await is_told("a feed without its domain", look_up(FEED), f'publish to "{info}.{FEED}"')
    of_bank = f"{info}.svc_bank".replace("$JS", "$JS.peal")
    await is_told("the feed of another app", look_up("svc_bank", domain="peal"), f'publish to "{of_bank}"')
    for name, act in [("publish", publish(f"send.{APP}")), ("now", ask(f"send.{APP}.now"))]:
        prefix = f"_ANSWERS.{name}"
        client = await connect(f"inbox, {name}", inbox_prefix=prefix)
        check(f"a wrong inbox, {name}", await error_of(act(client)), TimeoutError)
        complaint = reported[f"inbox, {name}"][0]
        check("what names it", complaint.startswith(f'nats: permissions violation for subscription to "{prefix.lower()}.'), True)
        await client.close()
    # The usual prefix may be continued.
    client = await connect("inbox, continued", inbox_prefix="_INBOX.shop.orders")
    check("a continued inbox", await error_of(ask(f"send.{APP}.now")(client)), None)
    await client.close()

    # The app's data stays in eu: there is no intake in us, and a gateway there says where to ask.
    client = await connect("elsewhere", at="PEAL_NATS_ELSEWHERE")
    check("elsewhere, publish", await error_of(publish(f"send.{APP}")(client)), NoStreamResponseError)
    answer = await client.request(f"send.{APP}.now", body, timeout=WITHIN_S)
    check("elsewhere, now", answer.headers.get("Nats-Service-Error-Code"), "421")
    told = json.loads(answer.data)
    check("where", (told["code"], told["detail"]), ("resides_elsewhere", "Ask a gateway of eu, where this app's data stays."))
    await client.close()


async def error_of(act):
    """The type of the error with which an act ends."""
    try:
        await act
    except Exception as error:
        return type(error)
    return None


async def main():
    service = await connect("service")
    await publishes(service)
    await asks(service)
    await reads_feed(service)
    await finds(service)
    check("complaints about the service", reported["service"], [])
    await service.close()
    await makes_mistakes()


asyncio.run(main())
done("nats-py")
