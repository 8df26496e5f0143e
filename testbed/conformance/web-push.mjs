// The Node.js library web-push against the simulator of a push service.
import { createPrivateKey } from 'node:crypto';
import https from 'node:https';
import webpush from 'web-push';
import { at, check, clear, done, log, read, script } from './check.mjs';

const agent = new https.Agent({ ca: read('ca.pem') });
const subscription = JSON.parse(read('web-push-subscription.json'));
const { d } = createPrivateKey(read('web-push.pem')).export({ format: 'jwk' });
const vapidDetails = { subject: 'mailto:ops@example.com', publicKey: at.web_push_key, privateKey: d };

async function send(payload, options = {}, to = subscription) {
  const all = { TTL: 60, contentEncoding: 'aes128gcm', agent, vapidDetails, ...options };
  try {
    const answer = await webpush.sendNotification(to, payload, all);
    return [answer.statusCode, ''];
  } catch (error) {
    if (error.statusCode === undefined) throw error;
    return [error.statusCode, JSON.parse(error.body).reason];
  }
}

await clear();
check('a push', await send('Schöne Grüße', { urgency: 'low', topic: 'order-42' }), [201, '']);
const [push] = (await log()).web_push;
check('what the browser decrypted', push.payload, 'Schöne Grüße');
check('its headers', [push.expiration, push.priority, push.collapse_id], ['60', 'low', 'order-42']);
check('the longest payload', await send('x'.repeat(3993)), [201, '']);
check('one byte more', await send('x'.repeat(3994)), [413, 'PayloadTooLarge']);
check('the former encoding', await send('x', { contentEncoding: 'aesgcm' }), [403, 'BadAuthorizationHeader']);
const other = { ...subscription, keys: { ...subscription.keys, auth: 'AAAAAAAAAAAAAAAAAAAAAA' } };
check('another secret', await send('x', {}, other), [400, 'DecryptionFailed']);

for (const [reason, status] of [
  ['Unregistered', 410],
  ['TooManyRequests', 429],
  ['VapidPkHashMismatch', 403],
]) {
  await script({ web_push: { rules: [{ times: 1, answer: { reason } }] } });
  check(reason, await send('x'), [status, reason]);
}
done('web-push');
