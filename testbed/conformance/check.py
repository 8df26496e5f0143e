"""What the Python clients share: where the simulators are, and how a mismatch is reported."""

import json
import os
import pathlib
import sys
import urllib.request

DIR = pathlib.Path(os.environ.get("SIMULATORS", "."))
# A client of a whole mesh needs no simulators.
AT = json.loads((DIR / "simulators.json").read_text()) if "SIMULATORS" in os.environ else {}
_failures = 0


def file(name):
    return str(DIR / name)


def read(name):
    return (DIR / name).read_text()


def check(what, is_, wanted):
    global _failures
    if is_ != wanted:
        _failures += 1
        print(f"MISMATCH {what}: {is_!r}, wanted {wanted!r}", file=sys.stderr)


def admin(method, path, body=None):
    request = urllib.request.Request(
        AT["admin"] + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as answered:
        return json.loads(answered.read() or "null")


def script(**scripts):
    admin("PUT", "/script", scripts)


def done(name):
    print(f"ok       {name}" if _failures == 0 else f"FAILED   {name}: {_failures} mismatches")
    sys.exit(0 if _failures == 0 else 1)
