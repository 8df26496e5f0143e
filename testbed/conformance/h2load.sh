#!/usr/bin/env bash
# h2load (Debian nghttp2-client) against the APNs simulator. It does not wait for SETTINGS, so each of its two connections
# may lose the streams that it opens beyond the first before the provider token is seen, as it would with Apple.
set -euo pipefail
command -v h2load >/dev/null || exit 77
port=$(sed -n 's/.*"apns_port": *\([0-9]*\).*/\1/p' "$SIMULATORS/simulators.json")
printf '{"aps":{"alert":"ding"}}' >"$SIMULATORS/body.json"
out=$(h2load -n "${1:-20000}" -c 2 -m 100 -d "$SIMULATORS/body.json" \
  -H "authorization: bearer $(cat "$SIMULATORS/apns-provider-token.jwt")" -H 'apns-topic: com.example.app' \
  "https://localhost:$port/3/device/beef")
read -r succeeded failed < <(sed -n 's/^requests:.* \([0-9]*\) succeeded, \([0-9]*\) failed.*/\1 \2/p' <<<"$out")
if ((succeeded + failed != ${1:-20000} || failed > 2 * 99)); then
  echo "$out" >&2
  echo 'FAILED   h2load'
  exit 1
fi
echo "ok       h2load: $failed refused before the token was seen; $(sed -n 's/^finished in //p' <<<"$out")"
