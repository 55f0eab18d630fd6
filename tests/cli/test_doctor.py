"""`crust doctor`: its options, its JSON keys, its words."""

from __future__ import annotations

import argparse
import json
import socket
from pathlib import Path

import pytest

from crust.cli import doctor, main
from crust.cli.options import stun_server
from crust.net import stun
from crust.net.interfaces import Gateway, LocalAddress
from crust.net.portmap import PortMapAttempt, PortMapReport
from crust.net.stun_probe import Sighting
from crust.node.doctor import Diagnosis
from crust.proto.nat.behaviour import Allocation, Filtering, Mapping, NatVerdict
from crust.proto.nat.verdict import Access, Known, advise, outlook

KEYS = ["addresses", "gateways", "outside", "observers", "udp", "tcp", "ipv6", "port_mapping", "dials", "advice"]
PROTOCOL_KEYS = [
    *("passes", "only_ports", "translated", "mapping", "mapping_confidence", "mapping_sureness", "filtering"),
    *("filtering_confidence", "allocation", "allocation_confidence", "step", "hairpinning", "mapped", "observers"),
    "words",
]


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("stun.example:3479", ("stun.example", 3479)),
        ("stun.example", ("stun.example", 3478)),
        ("192.0.2.1:1", ("192.0.2.1", 1)),
        ("[2001:db8::1]:5", ("2001:db8::1", 5)),
        ("[2001:db8::1]", ("2001:db8::1", 3478)),
        ("2001:db8::1", ("2001:db8::1", 3478)),
    ],
)
def test_servers(text: str, server: tuple[str, int]) -> None:
    assert stun_server(text) == server


@pytest.mark.parametrize("text", ["", ":5", "host:0", "host:99999", "host:x"])
def test_mistyped_servers(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="not HOST:PORT"):
        stun_server(text)


def run(tmp_path: Path, *options: str) -> int:
    config = tmp_path / "config.toml"
    config.touch()
    return main(["doctor", "--config", str(config), "--no-port-mapping", *options])


def test_a_server_that_does_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(stun, "resolve_server", fail)
    assert run(tmp_path, "--stun", "no-such-host.invalid") == 2
    assert "crust: --stun no-such-host.invalid: Name or service not known" in capsys.readouterr().err


def test_one_json_object_with_stable_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--json") == 0
    [line] = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert list(record) == [*KEYS, "elapsed_ms"]
    assert list(record["udp"]) == list(record["tcp"]) == PROTOCOL_KEYS
    assert list(record["ipv6"]) == ["addresses", "gateway", "passes"]
    assert [each["peer"] for each in record["dials"]] == [
        *("public", "open-nat", "easy-nat", "sequential-nat", "hard-nat", "udp-blocked", "ipv6")
    ]
    assert list(record["dials"][0]) == ["peer", "text", "udp", "tcp", "best", "sureness", "why"]
    assert record["udp"]["passes"] is record["tcp"]["passes"] is record["port_mapping"] is None
    assert "nobody was there to say" in record["advice"][0]
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_keys_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto" / "diagnose.md").read_text()
    for key in (*KEYS, *PROTOCOL_KEYS, "elapsed_ms", "sureness", "best", "outcome", "observed"):
        assert f"`{key}`" in page, key


def test_words_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--transport", "tcp") == 0
    text = capsys.readouterr().out
    assert "UDP   not used" in text
    assert "TCP   not known: nobody was there to say" in text
    assert "Advice" in text


def test_a_hard_nat_in_words() -> None:
    verdict = NatVerdict(
        "tcp",
        mapping=Mapping.ADDRESS_AND_PORT_DEPENDENT,
        filtering=Filtering.ADDRESS_AND_PORT_DEPENDENT,
        allocation=Allocation.RANDOM,
        mapping_confidence=0.7,
    )
    udp, tcp = Access(NatVerdict(), passes=False), Access(verdict, passes=True, only_ports=frozenset({443}))
    attempt = PortMapAttempt("pcp", "192.168.1.1", "tcp", ("192.168.1.2", 4), "refused", "NOT_AUTHORIZED", code=2)
    found = Diagnosis(
        [LocalAddress("192.168.1.2", 24, "eth0"), LocalAddress("fe80::2", 64, "eth0")],
        [Gateway("192.168.1.1", guessed=True)],
        [
            Sighting("tcp", "stun", ("11.0.0.1", 443), ("192.168.1.2", 4), ("11.0.9.9", 77), "answered", 0.0, 40.0),
            Sighting("udp", "stun", ("11.0.0.1", 443), ("192.168.1.2", 4), None, "silent", 0.0, error="no \x1b answer"),
        ],
        udp,
        tcp,
        ipv6=False,
        outside=["11.0.9.9"],
        port_mapping=PortMapReport(["192.168.1.1"], [attempt]),
    )
    known = Known({"tcp": 1}, port_mapping=("the router 192.168.1.1 answers PCP, but it is switched off",))
    found.dials, found.advice = outlook(udp, tcp, known), advise(udp, tcp, known)
    text = doctor._text(found)
    assert "router: 192.168.1.1 (a guess)" in text
    assert "11.0.9.9:77" in text
    assert "silent: no \N{REPLACEMENT CHARACTER} answer" in text
    assert "UDP   does not get out" in text
    assert "address-and-port-dependent filtering, random ports; only to port 443 (mapping: likely)" in text
    assert "NOT_AUTHORIZED" in text
    assert "- the router 192.168.1.1 answers PCP, but it is switched off" in text
    assert "relay" in text
