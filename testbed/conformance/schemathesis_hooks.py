"""Completes valid requests with what the API's description cannot say."""

import datetime
import re
import uuid

import schemathesis


@schemathesis.hook
def before_call(context, case, kwargs):
    if not case.meta or not case.meta.generation.mode.is_positive:
        return
    body = case.body if isinstance(case.body, dict) else {}
    # New for every body, and equal to the member event_id.
    if case.headers and "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = str(uuid.uuid4())
        if body.get("event_id") is not None:
            body["event_id"] = case.headers["Idempotency-Key"]
    # The version that the app has.
    if case.headers:
        case.headers.pop("If-Match", None)
    # A recipient has at most 100 addresses.
    if case.path.endswith("/addresses") and case.method == "POST":
        case.path_parameters["recipient_id"] = str(uuid.uuid4())
    # At most 28 days ago.
    if body.get("created_at") is not None:
        body["created_at"] = datetime.datetime.now(datetime.timezone.utc).isoformat()
    # In the future.
    for name in ("expires_at", "until"):
        if body.get(name) is not None:
            body[name] = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=1)).isoformat()
    # After that and at most 366 days ahead.
    if body.get("send_at") is not None:
        body["send_at"] = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)).isoformat()
    # A pattern that names a time to come, and an end after the beginning.
    if body.get("cron") is not None:
        body["cron"] = "0 9 * * *"
        body.pop("starts_at", None)
        body.pop("ends_at", None)
        # What is checked above stands in the body itself.
        body["notification"] = {"to": {"recipients": ["ann"]}, "push": {"title": "Hello"}}
    # One of the mesh's regions, and one of IANA's names.
    if body.get("home") is not None:
        body["home"] = "eu"
    if body.get("timezone") is not None:
        body["timezone"] = "Europe/Zurich"
    # A window that ends when it begins is none.
    for window in body.get("quiet_hours") or []:
        if window["from"] == window["to"]:
            window.update({"from": "22:00", "to": "07:00"})
    if isinstance(body.get("push"), dict) and body["push"].get("url") is not None:
        body["push"]["url"] = "https://shop.example/orders/42"
    # URLs that the parser of browsers takes, and a point of the curve: the one of RFC 8291, appendix A.
    for name in ("url", "endpoint"):
        if body.get(name) is not None:
            body[name] = f"https://push.example.net/{uuid.uuid4()}"
    if body.get("p256dh") is not None:
        body["p256dh"] = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"
    # Only the app's own senders.
    if isinstance(body.get("email"), dict) and body["email"].get("from"):
        body["email"]["from"] = {"email": "news@shop.example"}
    if isinstance(body.get("sms"), dict) and body["sms"].get("from"):
        body["sms"]["from"] = "Shop"
    # One segment in any encoding.
    if isinstance(body.get("sms"), dict):
        body["sms"]["text"] = "Hello"
    # A step for each channel that has content.
    if isinstance(body.get("plan"), dict):
        given = [channel for channel in ("push", "email", "sms", "webhook") if body.get(channel)]
        body["plan"]["steps"] = [{"channel": channel} for channel in given]
        if body["to"].get("topic"):
            body["plan"]["mode"] = "all"
    # An answer has them, a question does not.
    if case.path == "/v1/apps/{app}/keys":
        for name in ("id", "key", "created_at", "used_at"):
            body.pop(name, None)
        # Tokens are signed.
        body["signing"] = True
    # A mute that ends is one.
    if body.get("muted_until") is not None:
        body["muted"] = True
    # The rules of a map's keys are lost where its values may be null.
    for member in ("topics", "categories"):
        if case.path.endswith("/preferences") and isinstance(body.get(member), dict):
            body[member] = {name: value for name, value in body[member].items() if re.fullmatch("[a-z0-9_-]{1,64}", name)}
    # What waits keeps its channel.
    if case.path == "/v1/notifications/{notification_id}" and case.method == "PATCH":
        for name in ("push", "email", "sms", "webhook", "expires_at"):
            body.pop(name, None)
        body["send_at"] = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)).isoformat()
    if case.path == "/v1/controls":
        for name in ("id", "who", "created_at"):
            body.pop(name, None)
        body.update(app="shop", region="eu")
    if case.path == "/v1/apps/{app}":
        # Unit tests of the gateway try the members that the description only calls objects.
        for name in body.keys() - {"suspended", "services"}:
            body.pop(name)
        body.update(id=case.path_parameters["app"], default_region="eu")
    # An address that the content reaches.
    if isinstance(body.get("to"), dict) and body["to"].get("address"):
        of_channel = {
            "push": {"provider": "fcm", "token": "t"},
            "email": {"type": "email", "email": "ann@example.com"},
            "sms": {"type": "phone", "phone": "+41791234567"},
            "webhook": {"type": "webhook", "url": "https://example.com/", "format": "chat"},
        }
        body["to"]["address"] = next(address for channel, address in of_channel.items() if body.get(channel))
    # The `next` of an earlier answer.
    if case.query:
        case.query.pop("cursor", None)
    # Either an event or a group, of which alone there are pages.
    if case.path == "/v1/notifications" and case.method == "GET":
        if case.query and case.query.get("event_id"):
            case.query = {"event_id": case.query["event_id"]}
        else:
            case.query = {"group_key": "room/1"}
