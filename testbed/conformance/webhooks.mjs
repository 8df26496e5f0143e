// Verifies requests that webhooks.py received, with the JavaScript library of Standard Webhooks. Prints how many are good.
import { readFileSync } from 'node:fs';
import { Webhook } from 'standardwebhooks';

const [, , file, secret] = process.argv;
const webhook = new Webhook(secret);
const requests = JSON.parse(readFileSync(file, 'utf8'));
for (const [headers, body] of requests) {
  const lower = Object.fromEntries(Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]));
  webhook.verify(body, lower);
}
console.log(requests.length);
