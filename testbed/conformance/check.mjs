// What the Node.js clients share: where the simulators are, and how a mismatch is reported.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

export const dir = process.env.SIMULATORS;
export const at = JSON.parse(readFileSync(join(dir, 'simulators.json'), 'utf8'));
export const file = (name) => join(dir, name);
export const read = (name) => readFileSync(file(name), 'utf8');

let failures = 0;

export function check(what, is, wanted) {
  const [a, b] = [JSON.stringify(is), JSON.stringify(wanted)];
  if (a === b) return;
  failures += 1;
  console.error(`MISMATCH ${what}: ${a}, wanted ${b}`);
}

async function admin(method, path, body) {
  const answered = await fetch(at.admin + path, {
    method,
    headers: { 'content-type': 'application/json' },
    body: body && JSON.stringify(body),
  });
  if (!answered.ok) throw new Error(`${method} ${path}: ${answered.status} ${await answered.text()}`);
  return answered.status === 200 ? answered.json() : undefined;
}

export const script = (scripts) => admin('PUT', '/script', scripts);
export const clear = () => admin('DELETE', '/log');
export const log = () => admin('GET', '/log');
export const stats = () => admin('GET', '/stats');
export const goAway = () => admin('POST', '/go-away');

export function done(name) {
  console.log(failures === 0 ? `ok       ${name}` : `FAILED   ${name}: ${failures} mismatches`);
  process.exit(failures === 0 ? 0 : 1);
}
