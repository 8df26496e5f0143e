"""aioapns, which matches answers to pushes by apns-id, against the APNs simulator."""

import asyncio
import logging
import ssl

from aioapns import APNs, NotificationRequest, PushType
from aioapns.connection import APNsProductionClientProtocol

from check import AT, admin, check, done, file, read, script

logging.disable(logging.CRITICAL)
APNsProductionClientProtocol.APNS_SERVER = "localhost"
APNsProductionClientProtocol.APNS_PORT = AT["apns_port"]


def push(token, **more):
    return NotificationRequest(
        device_token=token,
        message={"aps": {"alert": "ding"}},
        push_type=PushType.ALERT,
        **more,
    )


async def main():
    client = APNs(
        key=read("apns-key.p8"),
        key_id=AT["key_id"],
        team_id=AT["team_id"],
        topic="com.example.app",
        max_connections=1,
        ssl_context=ssl.create_default_context(cafile=file("ca.pem")),
    )
    admin("DELETE", "/log")
    script(
        apns={
            "rules": [
                {"token": "0a", "answer": {"reason": "Unregistered", "timestamp_ms": 1700000000123}},
                {"token": "0b", "answer": {"reason": "TooManyRequests"}},
            ]
        }
    )
    # The first push alone: a connection has one stream until it has shown its provider token.
    first = await client.send_notification(push("beef"))
    check("the first push", (first.status, first.is_successful), ("200", True))
    admin("DELETE", "/log")
    results = await asyncio.gather(*(client.send_notification(push(f"{n:08x}")) for n in range(100)))
    check("100 pushes", {(r.status, r.is_successful) for r in results}, {("200", True)})
    check("logged", len({p["token"] for p in admin("GET", "/log")["apns"]}), 100)

    async def refusal(token, **more):
        result = await client.send_notification(push(token, **more))
        return (result.status, result.description)

    check("collapsed", await refusal("beef", collapse_key="score", priority=5, time_to_live=60), ("200", None))
    logged = admin("GET", "/log")["apns"][-1]
    check("headers", (logged["collapse_id"], logged["priority"]), ("score", "5"))
    check("bad token", await refusal("nothex"), ("400", "BadDeviceToken"))
    check("bad collapse id", await refusal("beef", collapse_key="c" * 65), ("400", "BadCollapseId"))
    gone = await client.send_notification(push("0a"))
    check("gone", (gone.status, gone.description, gone.timestamp), ("410", "Unregistered", 1700000000123))
    check("too many", await refusal("0b"), ("429", "TooManyRequests"))


asyncio.run(main())
done("aioapns")
