"""The IK engine against the public test vectors.

`tests/vectors/noise_ik_25519.json` holds the IK vectors for Curve25519 from `tests/vectors/` of the Rust library snow
(https://github.com/mcginty/snow, commit 8ac60f5): `cacophony.txt`, made by the Haskell library cacophony, and
`snow.txt`. Each names its file under `source`. BLAKE2s is not used by Crust, but runs through the same state machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crust.crypto.aead import Suite, aead, nonce
from crust.crypto.dh import DhKey
from crust.proto.noise.ik import IkInitiator, IkResponder

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "noise_ik_25519.json").read_text())["vectors"]
SUITES = {"AESGCM": Suite.AESGCM, "ChaChaPoly": Suite.CHACHAPOLY}


def both(vector: dict[str, Any]) -> tuple[IkInitiator, IkResponder, Suite]:
    """Both sides, with the keys of the vector."""
    pattern, curve, cipher, hash_name = vector["protocol_name"].removeprefix("Noise_").split("_")
    assert (pattern, curve) == ("IK", "25519")
    assert not vector.get("init_psks")
    suite = SUITES[cipher]
    data = {
        name: bytes.fromhex(value) for name, value in vector.items() if name.startswith(("init_", "resp_")) and value
    }
    static, responder_static = DhKey(data["init_static"]), DhKey(data["resp_static"])
    assert responder_static.public == data["init_remote_static"]
    initiator = IkInitiator(
        suite,
        data["init_prologue"],
        static,
        DhKey(data["init_ephemeral"]),
        data["init_remote_static"],
        hash_name.lower(),
    )
    return initiator, IkResponder(suite, data["resp_prologue"], responder_static, hash_name.lower()), suite


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['protocol_name']}-{Path(v['source']).stem}")
def test_vector(vector: dict[str, Any]) -> None:
    initiator, responder, suite = both(vector)
    messages = [(bytes.fromhex(m["payload"]), bytes.fromhex(m["ciphertext"])) for m in vector["messages"]]
    (payload_1, message_1), (payload_2, message_2), *transport = messages

    assert initiator.write_message_1(payload_1) == message_1
    assert responder.read_message_1(message_1) == payload_1
    assert responder.write_message_2(DhKey(bytes.fromhex(vector["resp_ephemeral"])), payload_2) == message_2
    assert initiator.read_message_2(message_2) == payload_2

    assert initiator.handshake_hash == responder.handshake_hash
    if "handshake_hash" in vector:
        assert initiator.handshake_hash.hex() == vector["handshake_hash"]
    keys = initiator.split()
    assert keys == responder.split()
    assert len(transport) >= 2
    for index, (payload, ciphertext) in enumerate(transport):
        # Messages alternate, the initiator begins; each direction counts for itself.
        cipher, number = aead(suite, keys[index % 2]), nonce(suite, index // 2)
        assert cipher.encrypt(number, payload, b"") == ciphertext
        assert cipher.decrypt(number, ciphertext, b"") == payload


def test_there_are_vectors_of_every_kind() -> None:
    assert len(VECTORS) == 8
    assert {v["protocol_name"] for v in VECTORS} == {
        f"Noise_IK_25519_{cipher}_{name}" for cipher in ("AESGCM", "ChaChaPoly") for name in ("SHA256", "BLAKE2s")
    }
