"""Signs requests with Python's hmac, and makes client tokens with PyJWT, as docs/client-tokens.md says; the gateway must
take what is right and refuse what is not. Started by testbed/tests/gateway/signing.rs."""

import base64
import hashlib
import hmac
import json
import os
import sys
import time
import urllib.error
import urllib.request
import uuid

import jwt

URL, APP = os.environ["PEAL_URL"], os.environ["PEAL_APP"]
_, KEY_ID, SECRET = os.environ["PEAL_KEY"].split("_", 2)
failures = 0


def expect(what, is_, wanted):
    global failures
    if is_ != wanted:
        failures += 1
        print(f"MISMATCH {what}: {is_!r}, wanted {wanted!r}", file=sys.stderr)


def http(method, path, authorization, body=None):
    headers = {"Authorization": authorization, "Content-Type": "application/json"}
    request = urllib.request.Request(URL + path, method=method, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=15) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def sign(method, path, body, at=None, nonce=None):
    at, nonce = at or int(time.time()), nonce or uuid.uuid4().hex
    digest = hashlib.sha256(body or b"").hexdigest()
    message = "\n".join(["peal1", method, path, str(at), nonce, digest])
    signature = hmac.new(SECRET.encode(), message.encode(), hashlib.sha256).digest()
    text = base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
    return f"Peal-HMAC-SHA256 key={KEY_ID}, time={at}, nonce={nonce}, signature={text}"


body = json.dumps({"to": {"recipients": ["zoë"]}, "push": {"title": "Grüezi"}}).encode()
path = "/v1/notifications"
signed = sign("POST", path, body)
expect("signed", http("POST", path, signed, body)[0], 202)
expect("replayed", http("POST", path, signed, body)[1]["code"], "request_replayed")
expect("another body", http("POST", path, sign("POST", path, body), body + b" ")[0], 401)
expect("without a body", http("GET", path + "?event_id=a%20b", sign("GET", path + "?event_id=a%20b", None))[0], 422)
expect("escaped path", http("GET", "/v1/recipients/zo%C3%AB", sign("GET", "/v1/recipients/zo%C3%AB", None))[0], 404)
expect("early", http("POST", path, sign("POST", path, body, int(time.time()) + 200), body)[0], 202)
expect("too late", http("POST", path, sign("POST", path, body, int(time.time()) - 400), body)[0], 401)


def token(algorithm="HS256", key=SECRET, **changes):
    now = int(time.time())
    claims = {"aud": "peal", "iss": APP, "sub": "zoë", "iat": now, "exp": now + 300, "scope": "addresses preferences"}
    return "Bearer " + jwt.encode({**claims, **changes}, key, algorithm, headers={"kid": KEY_ID})


device = json.dumps({"provider": "fcm", "token": "t1"}).encode()
addresses = "/v1/recipients/zo%C3%AB/addresses"
expect("device", http("POST", addresses, token(), device)[0], 201)
expect("preferences", http("PUT", "/v1/recipients/zo%C3%AB/preferences", token(), b"{}")[0], 200)
expect("topics", http("GET", "/v1/recipients/zo%C3%AB/topics", token())[0], 403)
expect("another", http("POST", "/v1/recipients/bob/addresses", token(), device)[0], 403)
expect("a list of audiences", http("POST", addresses, token(aud=["peal", "other"]), device)[0], 200)
for what, bad in {
    "none": token("none", None),
    "HS384": token("HS384"),
    "another secret": token(key="x" * 43),
    "ended": token(exp=int(time.time()) - 1),
    "two days": token(exp=int(time.time()) + 172_800),
    "another app": token(iss="bank"),
    "another audience": token(aud="other"),
    "a scope of keys": token(scope="notifications:write"),
}.items():
    expect(what, http("POST", addresses, bad, device)[0], 401)

sys.exit(1 if failures else print("ok       hmac and PyJWT"))
