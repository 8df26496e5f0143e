// The Node.js firebase-admin against the FCM simulator. It always dials fcm.googleapis.com and oauth2.googleapis.com on
// port 443, so it runs where these names lead to the simulator (see run).
import { initializeApp, cert } from 'firebase-admin/app';
import { getMessaging } from 'firebase-admin/messaging';
import { check, clear, done, file, log, script } from './check.mjs';

await clear();
await script({
  fcm: {
    rules: [
      { token: 'gone', answer: { reason: 'UNREGISTERED' } },
      { token: 'theirs', answer: { reason: 'SENDER_ID_MISMATCH' } },
      { token: 'quota', answer: { reason: 'QUOTA_EXCEEDED', retry_after: { seconds: 1 } } },
      { token: 'flaky', times: 1, answer: { reason: 'UNAVAILABLE', retry_after: { seconds: 1 } } },
    ],
  },
});

initializeApp({ credential: cert(file('fcm-service-account.json')) });
const messaging = getMessaging();
const code = async (message, dry) => {
  try {
    await messaging.send(message, dry);
    return 'sent';
  } catch (error) {
    return error.code;
  }
};
const note = { notification: { title: 'ding' } };

check('sent', /^projects\/.+\/messages\/.+/.test(await messaging.send({ token: 'phone', ...note })), true);
const full = {
  topic: 'news', data: { k: 'v' },
  android: { priority: 'high', ttl: 3500, collapseKey: 'c', notification: { channelId: 'x', sticky: true } },
  apns: { headers: { 'apns-priority': '5' }, payload: { aps: { badge: 1, alert: { title: 't' } } } },
  webpush: { headers: { TTL: '60' }, notification: { title: 't', actions: [{ action: 'a', title: 'b' }] } },
};
check('everything set', await code(full), 'sent');
const push = (await log()).fcm.at(-1);
check('as it arrived', [push.token, push.collapse_id, push.expiration], ['news', 'c', '3.500000000s']);
check('dry run', await messaging.send({ token: 'phone', ...note }, true), `projects/${push.topic}/messages/fake_message_id`);
check('unregistered', await code({ token: 'gone', ...note }), 'messaging/registration-token-not-registered');
check('another sender', await code({ token: 'theirs', ...note }), 'messaging/mismatched-credential');
check('quota', await code({ token: 'quota', ...note }), 'messaging/message-rate-exceeded');
check('503, then retried', await code({ token: 'flaky', ...note }), 'sent');
check('too big', await code({ token: 'phone', data: { k: 'x'.repeat(4097) } }), 'messaging/invalid-argument');

// Over HTTP/2 this client sends the scheme "https:", which is not one; see README.md.
messaging.enableLegacyHttpTransport();
const each = await messaging.sendEach([{ token: 'a', ...note }, { token: 'gone', ...note }, { token: 'b', ...note }]);
check('sendEach', [each.successCount, each.failureCount, each.responses[1].error?.code],
  [2, 1, 'messaging/registration-token-not-registered']);
done('firebase-admin (Node.js)');
