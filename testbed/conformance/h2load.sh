#!/usr/bin/env bash
# h2load (Debian nghttp2-client) against the APNs simulator: one stream until the provider token is seen, then a hundred.
set -euo pipefail
command -v h2load >/dev/null || exit 77
port=$(sed -n 's/.*"apns_port": *\([0-9]*\).*/\1/p' "$SIMULATORS/simulators.json")
printf '{"aps":{"alert":"ding"}}' >"$SIMULATORS/body.json"
out=$(h2load -n "${1:-20000}" -c 2 -m 100 -d "$SIMULATORS/body.json" \
  -H "authorization: bearer $(cat "$SIMULATORS/apns-provider-token.jwt")" -H 'apns-topic: com.example.app' \
  "https://localhost:$port/3/device/beef")
grep -q "${1:-20000} succeeded, 0 failed" <<<"$out" || { echo "$out" >&2; echo 'FAILED   h2load'; exit 1; }
echo "ok       h2load: $(sed -n 's/^finished in //p' <<<"$out")"
