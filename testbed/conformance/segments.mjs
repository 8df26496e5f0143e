// Makes and checks shared/src/content/testdata/segments.json, the segments of text messages, with npm's
// sms-segments-calculator.
//
// segments.mjs write   writes the table
// segments.mjs check   compares the table with the package

import { readFileSync, writeFileSync } from "node:fs";
import calculator from "sms-segments-calculator";

const { SegmentedMessage } = calculator;
const table = "../../shared/src/content/testdata/segments.json"; // from the directory of this script

const ask = (runs) => {
  const message = new SegmentedMessage(runs.map(([text, times]) => text.repeat(times)).join(""));
  return { runs, alphabet: message.encodingName, segments: message.segmentsCount };
};

const gsm = ["a", "€", "[", "Ç", "\n", "\r\n", "Σ", "^", "\f"];
const ucs = ["ж", "😀", "ç", "👨‍👩‍👧‍👦", "e\u0301", "🇨🇭", "👍🏽", "“", "x\u200d", "한", "`", "á", "नि", "❤️", "\t"];
const lengths = [1, 20, 34, 35, 66, 67, 68, 69, 70, 71, 76, 77, 80, 81, 133, 134, 135, 152, 153, 154, 159, 160, 161, 305, 306, 307, 460];

function cases() {
  const all = [[["", 0]]];
  for (const text of [...gsm, ...ucs]) {
    for (const length of lengths) all.push([[text, length]]);
  }
  for (const before of [66, 67, 68, 69, 133, 134, 151, 152, 153, 158, 159, 160, 305, 306]) {
    for (const text of [...gsm, ...ucs]) {
      const filler = gsm.includes(text) ? "a" : "ж";
      all.push([[filler, before], [text, 1]], [[filler, before], [text, 1], [filler, 152]]);
    }
  }
  // A small generator of numbers, so that the table is the same whoever makes it.
  let state = 1;
  const below = (n) => (state = (state * 48271) % 2147483647) % n;
  for (let i = 0; i < 200; i++) {
    const pool = below(2) ? gsm : [...gsm, ...ucs];
    all.push(Array.from({ length: 1 + below(8) }, () => [pool[below(pool.length)], 1 + below(60)]));
  }
  return all;
}

if (process.argv[2] === "write") {
  const lines = cases().map((runs) => JSON.stringify(ask(runs)));
  writeFileSync(table, `[\n${lines.join(",\n")}\n]\n`);
  console.log(`${lines.length} cases`);
} else {
  const known = JSON.parse(readFileSync(table, "utf8"));
  const different = known.filter((known) => JSON.stringify(ask(known.runs)) !== JSON.stringify(known));
  console.log(`${known.length} cases, ${different.length} differ`);
  process.exit(different.length > 0 || known.length < 400 ? 1 : 0);
}
