"""The simulator of JPush, driven by JPush's own Python client."""

import os

from check import AT, admin, check, done, file, script

os.environ["REQUESTS_CA_BUNDLE"] = file("ca.pem")

import jpush
from jpush import common

common.ZONES["DEFAULT"]["PUSH"] = f"https://localhost:{AT['jpush_port']}/v3/"


def push(to="1104a89792a3ef5ee5a", secret=AT["jpush_master_secret"], cid=None, validate=False, **change):
    request = jpush.JPush(AT["jpush_app_key"], secret).create_push()
    request.audience = jpush.registration_id(to)
    request.notification = jpush.notification(
        android=jpush.android(alert="Order 7", title="Paid", extras={"order": "7"}), ios=jpush.ios(alert="Order 7", badge=1)
    )
    request.platform = jpush.all_
    request.options = {"time_to_live": 60, "apns_production": False}
    request.cid = cid
    for name, value in change.items():
        setattr(request, name, value)
    try:
        return (request.send_validate() if validate else request.send()).payload["msg_id"]
    except common.Unauthorized:
        return "unauthorized"
    except common.JPushFailure as failure:
        return failure.error_code


def delivered():
    return sum(push["delivered"] for push in admin("GET", "/log")["jpush"])


check("JPush takes a push", str(push()).isdigit(), True)
check("a dry run", (str(push(validate=True)).isdigit(), delivered()), (True, 1))
check("a wrong secret", push(secret="wrong"), "unauthorized")
check("a long life", push(options={"time_to_live": 864_001}), 1003)
check("no content", push(notification={}), 1003)
cid = jpush.JPush(AT["jpush_app_key"], AT["jpush_master_secret"]).create_push().get_cid(1).payload["cidlist"][0]
first = push(cid=cid)
check("a cid that was used", (push(cid=cid), delivered()), (first, 2))
check("a cid of another form", push(cid="mine"), 1003)
script(jpush={"rules": [
    {"token": "gone", "answer": {"reason": "1011"}},
    {"token": "busy", "answer": {"reason": "2002"}},
]})
check("an id that is gone", push("gone"), 1011)
check("a rate limit", push("busy"), 2002)
done("jpush")
