// @parse/node-apn against the APNs simulator.
import { createRequire } from 'node:module';
import { at, check, clear, done, file, goAway, log, read, script } from './check.mjs';

const apn = createRequire(import.meta.url)('@parse/node-apn');

const topic = 'com.example.app';
const provider = new apn.Provider({
  token: { key: read('apns-key.p8'), keyId: at.key_id, teamId: at.team_id },
  address: 'localhost',
  port: at.apns_port,
  ca: file('ca.pem'),
  production: true,
});

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function note(more = {}) {
  return Object.assign(new apn.Notification({ alert: 'ding', topic, pushType: 'alert' }), more);
}

async function refusal(token, notification = note()) {
  const { sent, failed } = await provider.send(notification, token);
  return sent.length ? 'sent' : [Number(failed[0].status), failed[0].response?.reason];
}

await clear();
await script({ apns: { rules: [] } });

// The first push alone: a connection has one stream until it has shown its provider token, and node-apn neither waits
// for that nor retries a refused stream.
check('the first push', await refusal('beef'), 'sent');
await clear();
const tokens = Array.from({ length: 200 }, (_, n) => n.toString(16).padStart(8, '0'));
const many = await provider.send(note(), tokens);
check('200 pushes', [many.sent.length, many.failed.length], [200, 0]);
check('logged', new Set((await log()).apns.map((push) => push.token)).size, 200);

const id = '123e4567-e89b-12d3-a456-4266554400a0';
const expiry = Math.floor(Date.now() / 1000) + 60;
await provider.send(note({ id, collapseId: 'score', priority: 5, expiry }), 'beef');
const push = (await log()).apns.at(-1);
check('headers', [push.id, push.collapse_id, push.priority, push.expiration, push.topic, push.push_type],
  [id, 'score', '5', String(expiry), topic, 'alert']);
check('payload', JSON.parse(push.payload), { aps: { alert: 'ding' } });

check('bad token', await refusal('nothex'), [400, 'BadDeviceToken']);
check('bad topic', await refusal('beef', note({ topic: 'com example' })), [400, 'BadTopic']);
check('voip topic', await refusal('beef', note({ pushType: 'voip' })), [400, 'TopicDisallowed']);
check('too large', await refusal('beef', note({ payload: { x: 'x'.repeat(4096) } })), [413, 'PayloadTooLarge']);
check('no topic', await refusal('beef', note({ topic: undefined })), [400, 'MissingTopic']);

await script({
  apns: {
    rules: [
      { token: '0a', answer: { reason: 'Unregistered', timestamp_ms: 1700000000123 } },
      { token: '0b', answer: { reason: 'TooManyRequests' } },
      { token: '0c', times: 1, answer: { reason: 'ServiceUnavailable' } },
      { token: '0d', times: 1, answer: { act: { do: 'goaway', processed: true } } },
      { token: '0e', answer: { reason: 'BadDeviceToken', status: 400, body: 'garbage' } },
    ],
  },
});
const gone = await provider.send(note(), '0a');
check('unregistered', [Number(gone.failed[0].status), gone.failed[0].response], [410, { reason: 'Unregistered', timestamp: 1700000000123 }]);
check('too many requests', await refusal('0b'), [429, 'TooManyRequests']);
check('503, then retried', await refusal('0c'), 'sent');
check('goaway after the answer', await refusal('0d'), 'sent');
await pause(200);
check('a new connection', await refusal('beef'), 'sent');
const garbage = await provider.send(note(), '0e');
check('garbage', [garbage.sent.length, garbage.failed.length], [0, 1]);

await goAway();
await pause(200);
check('after a graceful GOAWAY', await refusal('beef'), 'sent');

const strangers = new apn.Provider({
  token: { key: read('apns-key.p8'), keyId: 'UNKNOWN001', teamId: at.team_id },
  address: 'localhost', port: at.apns_port, ca: file('ca.pem'), production: true,
});
const refused = await strangers.send(note(), 'beef');
check('unknown key', [Number(refused.failed[0].status), refused.failed[0].response?.reason], [403, 'InvalidProviderToken']);

await provider.shutdown();
await strangers.shutdown();
done('node-apn');
