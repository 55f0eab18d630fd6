"""The record layer, fed by somebody on the path, and by a peer that holds the keys and is hostile."""

from __future__ import annotations

from crust.crypto.aead import Suite
from crust.errors import RemoteProtocolError
from crust.proto.noise.transport import CipherKeys, KeyPair, first_keys
from crust.proto.record import RecordCodec
from fuzz.target import Reader, Target, block, fixed_random


def _keys(*, initiator: bool) -> KeyPair:
    return first_keys(Suite.AESGCM, b"c" * 32, b"i" * 32, b"r" * 32, initiator=initiator)


def seal(keys: CipherKeys, plaintext: bytes) -> bytes:
    """One record with any plaintext, as a peer could make it."""
    field = ((len(plaintext) - 1) ^ keys.next_mask()).to_bytes(2, "big")
    return field + keys.aead.encrypt(keys.next_nonce(), plaintext, field)


def feed(codec: RecordCodec, wire: bytes, chunk: int) -> int:
    """Give a codec a stream in pieces, as the network does; how many groups came out."""
    groups = 0
    buffer = b""
    for at in range(0, len(wire), chunk):
        buffer += wire[at : at + chunk]
        whole, used = codec.receive_data(memoryview(buffer), 0.0)
        assert used <= len(buffer)
        buffer = buffer[used:]
        for control, payloads in whole:
            assert control[0] == len(payloads)
        groups += len(whole)
    return groups


def run_stream(data: bytes) -> None:
    """Bytes that nobody with the keys has written never come out as a group."""
    reader = Reader(data)
    initiator, chunk = bool(reader.byte() & 1), 1 + reader.byte() * 16
    codec = RecordCodec(_keys(initiator=initiator), initiator=initiator, random=fixed_random(), now=0.0)
    good = _valid(initiator=not initiator)
    wire = reader.rest()
    genuine = sum(wire.startswith(b"".join(good[: count + 1])) for count in range(len(good)))
    assert feed(codec, wire, chunk) <= genuine


def run_peer(data: bytes) -> None:
    """Rightly sealed records with any content, in any order."""
    reader = Reader(data)
    initiator, chunk = bool(reader.byte() & 1), 1 + reader.byte() * 16
    ours = RecordCodec(_keys(initiator=initiator), initiator=initiator, random=fixed_random(), now=0.0)
    if initiator:
        ours.seal([(b"\0x", ())], 4000.0)  # an offer is out, so that an answer may come
    theirs = _keys(initiator=not initiator).send
    wire = b""
    while reader:
        wire += seal(theirs, reader.block() or b"\0")
    feed(ours, wire, chunk)
    ours.seal([(b"\0x", ())], 1.0)


def _valid(*, initiator: bool) -> list[bytes]:
    codec = RecordCodec(_keys(initiator=initiator), initiator=initiator, random=fixed_random(b"peer"), now=0.0)

    def group(control: bytes, *payloads: bytes) -> bytes:
        return bytes(codec.seal([(control, [memoryview(payload) for payload in payloads])], 0.0))

    return [group(b"\0hello"), group(b"\2ab", b"c" * 100, b"d" * 300), group(b"\0bye")]


def _peer_seeds() -> list[bytes]:
    plain = [block(b"\0hello"), block(b"\2ab"), block(b"c" * 100), block(b"d" * 300)]
    offer, answer, update = b"\xff\1" + b"\x09" + bytes(31), b"\xff\2" + b"\x09" + bytes(31), b"\xff\3"
    return [
        b"\0\xff" + b"".join(plain),
        b"\0\xff" + block(offer) + block(update) + plain[0],
        b"\1\xff" + plain[0] + block(answer) + plain[0],
    ]


TARGETS = (
    Target(
        "record-stream",
        run_stream,
        (RemoteProtocolError,),
        lambda: [bytes((side, 255)) + b"".join(_valid(initiator=not side)) for side in (0, 1)],
    ),
    Target("record-peer", run_peer, (RemoteProtocolError,), _peer_seeds),
)
