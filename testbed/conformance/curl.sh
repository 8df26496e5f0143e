#!/usr/bin/env bash
# curl against both simulators.
set -euo pipefail
at() { sed -n "s/.*\"$1\": *\"\\{0,1\\}\\([^\",}]*\\).*/\\1/p" "$SIMULATORS/simulators.json"; }
ca=$SIMULATORS/ca.pem
wrong=0
check() { [[ $2 == "$3" ]] || { echo "MISMATCH $1: $2, wanted $3" >&2; wrong=1; }; }

push() {
  curl -sS --http2 --cacert "$ca" -o /dev/null -w '%{http_version} %{http_code}' "$@" \
    -H "authorization: bearer $(cat "$SIMULATORS/apns-provider-token.jwt")" \
    -H 'apns-topic: com.example.app' -H 'apns-push-type: alert' -d '{"aps":{"alert":"ding"}}'
}
base=https://localhost:$(at apns_port)
check 'a push' "$(push "$base/3/device/beef")" '2 200'
check 'a bad token' "$(push "$base/3/device/nothex")" '2 400'
check 'a bad path' "$(push "$base/4/device/beef")" '2 404'

fcm=https://localhost:$(at fcm_port)
access=$(curl -sS --cacert "$ca" -d grant_type=urn:ietf:params:oauth:grant-type:jwt-bearer \
  --data-urlencode "assertion@$SIMULATORS/fcm-assertion.jwt" "$fcm/token" |
  sed -n 's/.*"access_token":"\([^"]*\)".*/\1/p')
for version in --http1.1 --http2; do
  check "a message, $version" "$(curl -sS $version --cacert "$ca" -o /dev/null -w '%{http_code}' \
    -H "authorization: Bearer $access" -H 'content-type: application/json' -d '{"message":{"token":"beef"}}' \
    "$fcm/v1/projects/$(at project_id)/messages:send")" 200
done
check 'no access token' "$(curl -sS --cacert "$ca" -o /dev/null -w '%{http_code}' -d '{}' \
  "$fcm/v1/projects/$(at project_id)/messages:send")" 401

if ((wrong)); then echo 'FAILED   curl'; else echo 'ok       curl'; fi
exit $wrong
