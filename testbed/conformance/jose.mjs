// Provider tokens and assertions signed by jose, sent over Node's own HTTP/2 and HTTP/1.1.
import http2 from 'node:http2';
import https from 'node:https';
import { importPKCS8, SignJWT } from 'jose';
import { at, check, done, read, script } from './check.mjs';

await script({ apns: { rules: [] }, fcm: { rules: [] } });
const ca = read('ca.pem');
const now = Math.floor(Date.now() / 1000);

// === APNs ===

const key = await importPKCS8(read('apns-key.p8'), 'ES256');
const sign = (iat, kid = at.key_id, iss = at.team_id) =>
  new SignJWT({ iss, iat }).setProtectedHeader({ alg: 'ES256', kid }).sign(key);
const session = http2.connect(`https://localhost:${at.apns_port}`, { ca });

function push(jwt, headers = {}) {
  return new Promise((resolve, reject) => {
    const stream = session.request({
      ':method': 'POST', ':path': '/3/device/beef',
      authorization: `bearer ${jwt}`, 'apns-topic': 'com.example.app', 'apns-push-type': 'alert', ...headers,
    });
    let status, body = '';
    stream.on('response', (head) => { status = head[':status']; });
    stream.on('data', (chunk) => { body += chunk; });
    stream.on('end', () => resolve([status, body && JSON.parse(body).reason]));
    stream.on('error', reject);
    stream.end('{"aps":{"alert":"ding"}}');
  });
}

const streams = () => session.remoteSettings.maxConcurrentStreams;
check('an old token', await push(await sign(now - 3700)), [403, 'ExpiredProviderToken']);
check('streams before a valid token', streams(), 1);
check('a good token', await push(await sign(now)), [200, '']);
await new Promise((resolve) => setTimeout(resolve, 100));
check('streams after a valid token', streams(), 1000);
check('an unknown team', await push(await sign(now, at.key_id, 'NOBODY0001')), [403, 'InvalidProviderToken']);
check('no JWT', await push('what'), [403, 'InvalidProviderToken']);
session.close();

// === FCM ===

const account = JSON.parse(read('fcm-service-account.json'));
const rsa = await importPKCS8(account.private_key, 'RS256');

function post(path, headers, body) {
  return new Promise((resolve, reject) => {
    const request = https.request(
      { host: 'localhost', port: at.fcm_port, path, method: 'POST', ca, headers },
      (answered) => {
        let text = '';
        answered.on('data', (chunk) => { text += chunk; });
        answered.on('end', () => resolve({ status: answered.statusCode, body: JSON.parse(text) }));
      },
    );
    request.on('error', reject);
    request.end(body);
  });
}

const grant = async (aud) => {
  const assertion = await new SignJWT({ scope: 'https://www.googleapis.com/auth/firebase.messaging' })
    .setProtectedHeader({ alg: 'RS256', kid: account.private_key_id })
    .setIssuer(account.client_email).setAudience(aud).setIssuedAt(now).setExpirationTime(now + 3600).sign(rsa);
  const form = new URLSearchParams({ grant_type: 'urn:ietf:params:oauth:grant-type:jwt-bearer', assertion });
  return post('/token', { 'content-type': 'application/x-www-form-urlencoded' }, form.toString());
};
const granted = await grant(account.token_uri);
check('a grant', [granted.status, granted.body.expires_in, granted.body.token_type], [200, 3599, 'Bearer']);
check('Google as audience', (await grant('https://oauth2.googleapis.com/token')).status, 200);
check('another audience', (await grant('https://example.com/')).body.error, 'invalid_grant');
const sent = await post(`/v1/projects/${at.project_id}/messages:send`,
  { authorization: `Bearer ${granted.body.access_token}`, 'content-type': 'application/json' },
  '{"message":{"topic":"news","data":{"k":"v"}}}');
check('a message', [sent.status, /^projects\/.+\/messages\/.+/.test(sent.body.name)], [200, true]);
done('jose, node http2 and https');
