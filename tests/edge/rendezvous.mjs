// The recipe of docs/edge.md in JavaScript, written from that page alone: reads the golden vectors, prints one
// JSON line with the number of checks and the differences found.
// Usage: node rendezvous.mjs tests/golden/edge_v1.json
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

const SEPARATOR = "\x1f";

function hash64(key) {
  return createHash("sha256").update(key, "utf8").digest().readBigUInt64BE(0);
}

function uniform(key) {
  return (Number(hash64(key) >> 12n) + 0.5) * 2 ** -52;
}

function isBefore(a, b) {
  return Buffer.compare(Buffer.from(a, "utf8"), Buffer.from(b, "utf8")) < 0;
}

function assign(table, unitId) {
  const prefix = table.experiment_id + SEPARATOR;
  if (uniform(prefix + "comparison" + SEPARATOR + unitId) < table.comparison) {
    return [null, false];
  }
  if (uniform(prefix + "holdout" + SEPARATOR + unitId) < table.holdout) {
    return [table.control, true];
  }
  let key = prefix + "arm" + SEPARATOR + unitId;
  if (table.interval_id !== null) {
    key += SEPARATOR + table.interval_id;
  }
  let best = null;
  let bestScore = Infinity;
  table.arms.forEach((armId, i) => {
    const weight = table.assignment_weights[i];
    if (!(weight > 0)) return;
    const score = -Math.log(uniform(key + SEPARATOR + armId)) / weight;
    if (score < bestScore || (score === bestScore && isBefore(armId, best))) {
      best = armId;
      bestScore = score;
    }
  });
  return [best, false];
}

const golden = JSON.parse(readFileSync(process.argv[2], "utf8"));
const differences = [];
let checks = 0;

for (const { key, hash64: expected, u } of golden.hashes) {
  checks += 2;
  if (hash64(key).toString(16).padStart(16, "0") !== expected) differences.push(["hash64", key]);
  if (uniform(key) !== u) differences.push(["u", key]);
}
for (const table of golden.cases) {
  for (const [unitId, armId, holdout] of table.assignments) {
    checks += 1;
    const found = assign(table, unitId);
    if (found[0] !== armId || found[1] !== holdout) differences.push([table.name, unitId, armId, found]);
  }
}
console.log(JSON.stringify({ checks, differences }));
