"""The simulator of Huawei Push Kit, driven by Huawei's own Python client `hpa`, which speaks v1 with OAuth."""

import hpa
import urllib3
from hpa import messaging

from check import AT, check, done, script

urllib3.disable_warnings()
HUAWEI = f"https://localhost:{AT['hms_port']}"


def app(secret=AT["hms_client_secret"]):
    # The client knows applications by their id, the first of them for good.
    hpa._apps.clear()
    return hpa.initialize_app(AT["hms_client_id"], secret, token_server=f"{HUAWEI}/oauth2/v3/token", push_open_url=HUAWEI)


def send(token="t1", click=messaging.AndroidClickAction(action_type=3), **members):
    shown = messaging.AndroidNotification(click_action=click, tag="order") if click else None
    message = messaging.Message(
        notification=messaging.Notification(title="Paid", body="Order 7"),
        android=messaging.AndroidConfig(urgency="HIGH", ttl="60s", notification=shown, **members),
        token=[token] if token else [],
    )
    try:
        answer = messaging.send_message(message, app_id=AT["hms_client_id"])
        return answer.code, bool(answer.requestId)
    except messaging.ApiCallError as error:
        return str(error)


app()
check("Huawei takes a push", send(), ("80000000", True))
check("no token", "400" in send(token=None), True)
check("nothing that a tap does", "400" in send(click=None), True)
script(hms={"rules": [
    {"token": "gone", "answer": {"reason": "80300007"}},
    {"token": "busy", "answer": {"reason": "81000001", "status": 503}},
]})
check("a token that is gone", send("gone"), ("80300007", True))
check("flow control", "503" in send("busy"), True)
app("wrong")
check("a wrong secret", "400" in send(), True)
done("hpa")
