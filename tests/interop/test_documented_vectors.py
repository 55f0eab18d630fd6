"""The vectors in the documentation are what this version does on the wire."""

from __future__ import annotations

import json
import subprocess
import sys
from base64 import b32encode
from hashlib import blake2s, sha256
from hmac import digest as hmac_digest
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

ROOT = Path(__file__).resolve().parents[2]


def test_vectors() -> None:
    done = subprocess.run([sys.executable, ROOT / "tools" / "vectors.py"], capture_output=True, text=True, check=True)
    written = (ROOT / "docs" / "explanation" / "vectors.json").read_text(encoding="utf-8")
    assert json.loads(done.stdout) == json.loads(written)


def hmac(key: bytes, data: bytes) -> bytes:
    return hmac_digest(key, data, "sha256")


def xor_length(field: bytes, mask: bytes) -> int:
    return int.from_bytes(field, "big") ^ int.from_bytes(mask[:2], "big")


def test_envelope_and_first_record_as_the_page_words_them() -> None:
    """Written from the documentation alone, with nothing of Crust."""
    vectors = json.loads((ROOT / "docs" / "explanation" / "vectors.json").read_text(encoding="utf-8"))
    handshake = next(entry for entry in vectors["handshakes"] if entry["suite"] == "AESGCM")
    peer_id = bytes.fromhex(vectors["responder"]["peer_id_bytes"])
    message_1 = bytes.fromhex(handshake["message_1"])
    salt, field, sealed = message_1[:16], message_1[16:18], message_1[18:]

    outer = sha256(b"crust-v1 outer" + peer_id).digest()
    assert xor_length(field, hmac(outer, salt + b"length")) == len(sealed)
    request = AESGCM(hmac(outer, salt)).decrypt(bytes(12), sealed, salt + field)
    assert request[:2] == b"\1\1"
    assert int.from_bytes(request[2:4], "big") == len(request) - 4 - vectors["padding_bytes"]
    assert request.endswith(bytes(vectors["padding_bytes"]))

    root = bytes.fromhex(handshake["root"])
    record = bytes.fromhex(handshake["first_record_of_initiator"])
    masks = AESGCM(hmac(root, b"crust-v1 masks initiator")).encrypt(bytes(12), bytes(128), None)
    plaintext = bytes.fromhex(handshake["first_record_plaintext"])
    assert xor_length(record[:2], masks) == len(plaintext) - 1


def test_datagram_requests_as_the_page_words_them() -> None:
    vectors = json.loads((ROOT / "docs" / "explanation" / "vectors.json").read_text(encoding="utf-8"))
    found = vectors["datagram_requests"]
    outer = sha256(b"crust-v1 outer" + bytes.fromhex(vectors["responder"]["peer_id_bytes"])).digest()
    marks = Cipher(AES(hmac(outer, b"datagram salt")), ECB()).decryptor()
    noise = []
    for name, mark in (("without_a_cookie", 0), ("with_the_cookie", 1)):
        request = bytes.fromhex(found[name])
        salt, proof, sealed = request[:16], request[16:32], request[32:]
        assert int.from_bytes(marks.update(salt)[12:], "big") == mark
        cookie = bytes.fromhex(found["cookie"])
        assert (proof == blake2s(salt, key=cookie, digest_size=16).digest()) is bool(mark)
        body = AESGCM(hmac(outer, salt + b"datagram")).decrypt(bytes(12), sealed, salt + proof)
        assert body[:2] == b"\1\1"
        noise.append(body[4 : 4 + int.from_bytes(body[2:4], "big")])
        assert len(body) == 4 + len(noise[-1]) + vectors["padding_bytes"]
    assert noise[0] == noise[1]
    assert noise[0].startswith(
        X25519PrivateKey.from_private_bytes(bytes.fromhex(vectors["ephemeral_of_initiator"]))
        .public_key()
        .public_bytes_raw()
    )

    request = bytes.fromhex(found["without_a_cookie"])
    salt, tag = request[:16], request[-16:]
    reply = AESGCM(hmac(outer, salt + tag + b"datagram reply")).decrypt(
        bytes(12), bytes.fromhex(found["cookie_reply"]), tag
    )
    assert reply[:17] == b"\1" + bytes.fromhex(found["cookie"])


def test_peer_id_text_as_the_page_words_it() -> None:
    vectors = json.loads((ROOT / "docs" / "explanation" / "vectors.json").read_text(encoding="utf-8"))
    key = bytes.fromhex(vectors["initiator"]["peer_id_bytes"])
    checked = key + sha256(b"crust-v1 peer-id" + key).digest()[:3]
    assert "crust" + b32encode(checked).decode().lower() == vectors["initiator"]["peer_id"]
    contact = bytes.fromhex(vectors["contact"]["bytes"])
    checked = contact + sha256(b"crust-v1 contact" + contact).digest()[:4]
    assert "crust:" + b32encode(checked).decode().lower().rstrip("=") == vectors["contact"]["text"]
