#!/usr/bin/env bash
# Sends notifications over HTTP and NATS, and waits for what becomes of them. Needs curl, and `peal` as a client of NATS.
#
#   source …/peal.env        # `cargo demo` prints its path
#   ./notify.sh
set -euo pipefail

# Without an installed `peal`: PEAL="cargo peal".
peal=${PEAL:-peal}
order=order-$(date +%s)-$$

# Asks a gateway. With --fail-with-body the answer to a mistake, which names the field, is shown.
http() {
  curl --silent --show-error --fail-with-body --max-time 15 --header "Authorization: Bearer $PEAL_KEY" \
    --header 'Content-Type: application/json' "$@"
}

# 1. HTTP. 202: stored. The event id names what happened: however often it is sent, it is delivered once.
accepted=$(http "$PEAL_URL/v1/notifications" --data '{
  "event_id": "'"$order-paid"'",
  "to": { "recipients": ["ann"] },
  "class": "urgent",
  "push": { "title": "Your order is paid" }
}')
echo "http     accepted $accepted"

# 2. NATS: a request to send.$PEAL_APP.now, as a service in the app's own account. The answer is that of HTTP.
id=$($peal send --nats "$NATS_URL" --app "$PEAL_APP" --to ann --class urgent --event-id "$order-shipped" \
  --title 'Your order is on its way')
echo "request  accepted $id"

# 3. The same event again, until every delivery has ended: nothing is sent twice.
$peal send --nats "$NATS_URL" --app "$PEAL_APP" --to ann --class urgent --event-id "$order-shipped" \
  --title 'Your order is on its way' --wait

# 4. The status by event id, whichever way it was sent. A delivery ends in one of seven states; `delivered` is one.
for event in "$order-paid" "$order-shipped"; do
  for _ in {1..60}; do
    status=$(http --get "$PEAL_URL/v1/notifications" --data-urlencode "event_id=$event")
    [[ $status == *'"state":"done"'* ]] && break
    sleep 1
  done
  echo "status   $event $status"
done
