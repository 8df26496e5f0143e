// The simulators of Twilio and Vonage, driven by the vendors' own clients.
import https from 'node:https';
import twilio from 'twilio';
import { Auth } from '@vonage/auth';
import { SMS } from '@vonage/sms';
import { at, check, clear, done, log, read, script } from './check.mjs';

await script({ twilio: { rules: [] }, vonage: { rules: [] } });
await clear();
const to = '+41791234567';

// === Twilio: its client dials api.twilio.com, so its requests are sent to the simulator. ===

class ToSimulator {
  request(options) {
    const { pathname, search } = new URL(options.uri);
    const authorization = `Basic ${Buffer.from(`${options.username}:${options.password}`).toString('base64')}`;
    const body = new URLSearchParams(options.data).toString();
    return new Promise((resolve, reject) => {
      const request = https.request({
        host: 'localhost', port: at.twilio_port, path: pathname + search, method: options.method, ca: read('ca.pem'),
        headers: { ...options.headers, authorization, 'content-type': 'application/x-www-form-urlencoded' },
      }, (answer) => {
        let text = '';
        answer.on('data', (chunk) => { text += chunk; });
        answer.on('end', () => resolve({ statusCode: answer.statusCode, body: JSON.parse(text), headers: answer.headers }));
      });
      request.on('error', reject);
      request.end(body);
    });
  }
}

const client = (token) => twilio(at.twilio_account_sid, token, { httpClient: new ToSimulator() });
const good = client(at.twilio_auth_token);
const refusal = async (sending) => {
  try {
    await sending;
    return 'accepted';
  } catch (error) {
    return [error.status, error.code];
  }
};
const message = await good.messages.create({ to, from: 'Shop', body: 'ж'.repeat(71), validityPeriod: 600 });
check('a SID', /^SM[0-9a-f]{32}$/.test(message.sid), true);
check('a message', [message.status, message.to, message.from, message.numSegments], ['queued', to, 'Shop', '2']);
check('a bad number', await refusal(good.messages.create({ to: '12', from: 'Shop', body: 'x' })), [400, 21211]);
check('no sender', await refusal(good.messages.create({ to, body: 'x' })), [400, 21603]);
check('no body', await refusal(good.messages.create({ to, from: 'Shop', body: '' })), [400, 21602]);
check('a long body', await refusal(good.messages.create({ to, from: 'Shop', body: 'x'.repeat(1601) })), [400, 21617]);
check('a wrong token', await refusal(client('wrong').messages.create({ to, from: 'Shop', body: 'x' })), [401, 20003]);
await script({ twilio: { rules: [{ token: to, answer: { reason: '20429' } }] } });
check('too many', await refusal(good.messages.create({ to, from: 'Shop', body: 'x' })), [429, 20429]);

// === Vonage ===

// Its client uses fetch, which trusts what NODE_EXTRA_CA_CERTS names.
const vonage = (secret) => new SMS(
  new Auth({ apiKey: at.vonage_api_key, apiSecret: secret }),
  { restHost: `https://localhost:${at.vonage_port}` },
);
const sms = (options) => vonage(at.vonage_api_secret).send({ to: to.slice(1), from: 'Shop', text: 'Hello', ...options });
const sent = await sms({ type: 'unicode', text: 'ж'.repeat(71) });
check('parts', [sent.messageCount, sent.messages.map((part) => part.status)], ['2', ['0', '0']]);
const status = async (sending) => {
  try {
    await sending;
    return 'accepted';
  } catch (error) {
    return error.response?.messages?.[0]?.status ?? String(error);
  }
};
check('a bad number of Vonage', await status(sms({ to: '12' })), '3');
check('a wrong secret', await status(vonage('wrong').send({ to: to.slice(1), from: 'Shop', text: 'x' })), '4');
await script({ vonage: { rules: [{ token: to, answer: { reason: '1' } }] } });
check('throttled', await status(sms({})), '1');

const recorded = await log();
check('delivered by Twilio', recorded.twilio.filter((push) => push.delivered).length, 1);
check('delivered by Vonage', recorded.vonage.filter((push) => push.delivered).length, 1);
done('twilio and @vonage/sms');
