"""The Python firebase-admin against the FCM simulator."""

import os

from check import AT, admin, check, done, file, script

os.environ["REQUESTS_CA_BUNDLE"] = file("ca.pem")

import firebase_admin  # noqa: E402  (reads the environment)
from firebase_admin import credentials, exceptions, messaging  # noqa: E402

messaging._MessagingService.FCM_URL = f"https://localhost:{AT['fcm_port']}/v1/projects/{{0}}/messages:send"
firebase_admin.initialize_app(credentials.Certificate(file("fcm-service-account.json")))

admin("DELETE", "/log")
script(
    fcm={
        "rules": [
            {"token": "gone", "answer": {"reason": "UNREGISTERED"}},
            {"token": "theirs", "answer": {"reason": "SENDER_ID_MISMATCH"}},
            {"token": "apple", "answer": {"reason": "THIRD_PARTY_AUTH_ERROR"}},
            {"token": "quota", "times": 1, "answer": {"reason": "QUOTA_EXCEEDED", "retry_after": {"seconds": 1}}},
            {"token": "down", "times": 1, "answer": {"reason": "UNAVAILABLE", "retry_after": {"date_in": 1}}},
        ]
    }
)


def outcome(token, **more):
    message = messaging.Message(token=token, notification=messaging.Notification(title="ding"), **more)
    try:
        messaging.send(message)
        return "sent"
    except exceptions.FirebaseError as error:
        return type(error).__name__


check("sent", outcome("phone", data={"k": "v"}), "sent")
check("unregistered", outcome("gone"), "UnregisteredError")
check("another sender", outcome("theirs"), "SenderIdMismatchError")
check("third party", outcome("apple"), "ThirdPartyAuthError")
check("429, then retried", outcome("quota"), "sent")
check("503 with a date, then retried", outcome("down"), "sent")
check("too big", outcome("phone", data={"k": "x" * 4097}), "InvalidArgumentError")
dry = messaging.send(messaging.Message(token="phone"), dry_run=True)
check("dry run", dry.endswith("fake_message_id"), True)
each = messaging.send_each([messaging.Message(token="a"), messaging.Message(token="gone")])
check("send_each", (each.success_count, each.failure_count), (1, 1))
retried = [push["token"] for push in admin("GET", "/log")["fcm"]]
check("requests for the retried", (retried.count("quota"), retried.count("down")), (2, 2))
done("firebase-admin (Python)")
