"""The configuration: what a file may say, and the sentence for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crust.config import Config
from crust.errors import ConfigError


def test_plain_values() -> None:
    config = Config.from_dict({"listen": ["[::1]:0"], "transports": ["utp"], "signing": False, "heartbeat": 5})
    assert (config.listen, config.transports, config.signing, config.heartbeat) == (["[::1]:0"], ["utp"], "off", 5.0)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"lissten": []}, "lissten: there is no such setting; perhaps listen"),
        ({"zzz": 1}, "zzz: there is no such setting"),
        ({"relay": "yes"}, "relay: it takes true or false, not a text"),
        ({"listen": 5}, "listen: it takes a list, not a whole number"),
        ({"listen": {"a": 1}}, "listen: it takes a list, not a table"),
        ({"listen": [5]}, "listen: each entry is a text, not a whole number"),
        ({"listen": ["nowhere"]}, 'listen: \'nowhere\' is not "ADDR:PORT" or "[ADDR6]:PORT"'),
        ({"listen": ["0.0.0.0:65536"]}, 'listen: \'0.0.0.0:65536\' is not "ADDR:PORT" or "[ADDR6]:PORT"'),
        ({"transports": ["quic"]}, 'transports: \'quic\' is not "tcp" or "utp"'),
        ({"transports": []}, 'transports: []; give one or both of "tcp" and "utp"'),
        ({"signing": "maybe"}, 'signing: \'maybe\' is not "on", "strict" or "off"'),
        ({"network_key": 5}, "network_key: takes a text or bytes"),
        ({"network_key": ""}, "network_key: it is empty; leave it out to have none"),
        ({"max_streams": True}, "max_streams: it takes a whole number, not true or false"),
        ({"max_streams": 1.5}, "max_streams: it takes a whole number, not a fraction"),
        ({"max_streams": 0}, "max_streams: 0 is not between 1 and 1,048,576"),
        ({"heartbeat": float("nan")}, "heartbeat: nan is not between 0.05 and 3,600"),
        ({"resume_timeout": -1}, "resume_timeout: -1.0 is not between 0.0 and 86,400"),
    ],
)
def test_each_mistake_is_a_sentence_that_names_the_setting(table: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(table, source="crust.toml")
    assert str(caught.value) == f"crust.toml: {sentence}"


@pytest.mark.parametrize(
    ("data", "text"), [(b"listen = [", "not TOML"), (b"\xff", "not TOML"), (b"relay=true\nrelay=false", "not TOML")]
)
def test_files_that_are_no_toml(tmp_path: Path, data: bytes, text: str) -> None:
    (tmp_path / "crust.toml").write_bytes(data)
    with pytest.raises(ConfigError, match=text):
        Config.from_file(tmp_path / "crust.toml")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Config.from_file(tmp_path / "crust.toml")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"a=" + b"[" * 100_000, "nested too deeply"),
        (b"heartbeat=" + b"9" * 100_000, "not TOML"),
        (b"network_name='" + b"x" * 300_000 + b"'", "at most 256 KiB"),
        (b"\xff\xfea", "not TOML"),
        (b"network_name='\0'", "not TOML"),
        (b"x" * 100, "not TOML"),
    ],
)
def test_files_that_are_none(tmp_path: Path, data: bytes, sentence: str) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=sentence) as found:
        Config.from_file(path)
    assert len(str(found.value)) < 400 + len(str(path))
