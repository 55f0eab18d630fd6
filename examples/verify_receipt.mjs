// Verifies a receipt without Crust: node verify_receipt.mjs RECEIPT FILE
//
// RECEIPT holds the binary or the text form, FILE the message. Written from docs/explanation/receipts.md alone, as an
// example for other languages. Node has no BLAKE3: messages over 2048 bytes of sessions that used it are not checked.

import { createHash, createPublicKey, verify } from "node:crypto";
import { readFileSync } from "node:fs";

const INLINE = 2048;
const sha256 = (...parts) => createHash("sha256").update(Buffer.concat(parts)).digest();

function fail(reason) {
  console.error(`refused: ${reason}`);
  process.exit(4);
}

function binaryForm(file) {
  const text = file.toString("latin1").replace(/\s/g, "");
  const prefix = "crust-receipt:";
  return text.startsWith(prefix)
    ? Buffer.concat([Buffer.from("crust-receipt"), Buffer.from(text.slice(prefix.length), "base64url")])
    : file;
}

function verifyReceipt(receipt, data) {
  let at = 0;
  const take = (size) => {
    if (at + size > receipt.length) fail("cut short");
    at += size;
    return receipt.subarray(at - size, at);
  };
  if (take(13).toString("latin1") !== "crust-receipt") fail("not a receipt");
  if (take(1)[0] !== 1) fail("another version");
  const direction = take(97);
  const numbers = take(24);
  const time = take(8);
  const signature = take(64);
  const head = take(32);

  const [hashId, signer] = [direction[0], direction.subarray(1, 33)];
  const [first, last, number] = [numbers.readBigUInt64BE(8), numbers.readBigUInt64BE(16), head.readBigUInt64BE(24)];
  if (hashId !== 1 && hashId !== 2) fail("unknown hash");
  if (!(first <= number && number <= last && last - first < 1n << 40n)) fail("numbers contradict each other");
  if (head[0] !== 0 || head[1] > 1 || head[2] > 7) fail("not a message or a piece of a stream");
  if (head.readUIntBE(3, 5) !== data.length) fail("another length");

  let content = data;
  if (data.length > INLINE) {
    if (hashId === 2) fail("long message hashed with BLAKE3, which this example does not have");
    content = sha256(data);
  }
  let node = sha256(head, content);
  for (let index = number - first, width = last - first + 1n; width > 1n; index >>= 1n, width = (width + 1n) >> 1n) {
    if (index & 1n) node = sha256(Buffer.of(1), take(32), node);
    else if (index + 1n < width) node = sha256(Buffer.of(1), node, take(32));
  }
  if (at !== receipt.length) fail("too long");

  const key = createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x: signer.toString("base64url") }, format: "jwk" });
  const signed = Buffer.concat([Buffer.from("crust-v1 receipt\0"), direction, numbers, node, time]);
  if (!verify(null, signed, key, signature)) fail("the signature does not match");
  return signer;
}

const [receiptPath, dataPath] = process.argv.slice(2);
console.log(verifyReceipt(binaryForm(readFileSync(receiptPath)), readFileSync(dataPath)).toString("hex"));
