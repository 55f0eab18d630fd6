"""The list of files: names that could do harm, limits, and any bytes at all."""

from __future__ import annotations

import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crust.errors import RemoteProtocolError
from crust.node.transfer import manifest as m
from crust.node.transfer.manifest import TOP, Entry, Manifest, ManifestBuilder, NameRefusedError, parse_manifest, shown


def file(name: str, folder: int = TOP, size: int = 1) -> Entry:
    return Entry(name, folder, False, size, 1_700_000_000_000_000_000, False)


def folder(name: str, parent: int = TOP) -> Entry:
    return Entry(name, parent, True, 0, 0, False)


def serialized(*entries: Entry) -> bytes:
    """The bytes of a manifest whose sender checks nothing."""
    return bytes(Manifest(list(entries)).serialize())


def raw(name: bytes, *, flags: int = 0, parent: int = 0, size: int = 1) -> bytes:
    return struct.pack(">I", 1) + struct.pack(">BIQqB", flags, parent, size, 0, len(name)) + name


def test_round_trip() -> None:
    builder = ManifestBuilder()
    top = builder.add(folder("Größe"))
    inner = builder.add(folder("inner", top))
    builder.add(Entry("run.sh", inner, False, 5, -1, True))
    builder.add(file("leer", inner, 0))
    builder.add(file("top.bin", TOP, 1 << 40))
    built = builder.build()
    parsed = parse_manifest(bytes(built.serialize()))
    assert parsed.entries == built.entries
    assert [parsed.path(n) for n in range(len(parsed))] == [
        "Größe",
        "Größe/inner",
        "Größe/inner/run.sh",
        "Größe/inner/leer",
        "top.bin",
    ]
    assert (parsed.files, parsed.bytes) == (3, 5 + (1 << 40))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("..", "no name"),
        (".", "no name"),
        ("", "no name"),
        ("/etc", "separator"),
        ("a/b", "separator"),
        ("../x", "separator"),
        ("..\\x", "separator"),
        ("\\\\host\\share", "separator"),
        ("C:", "drive"),
        ("c:autoexec.bat", "drive"),
        ("a\0b", "control"),
        ("a\nb", "control"),
        ("a\x1b[2J", "control"),
        ("a\x7f", "control"),
        ("a\x9b", "control"),
        ("exe\u202etxt.js", "control"),
        ("x" * 256, "longer"),
        ("ä" * 128, "longer"),
        (".crust-partial", "unfinished"),
        (".CRUST-Partial", "unfinished"),
        (".crust-partial. ", "unfinished"),
    ],
)
def test_hostile_names_are_refused(name: str, why: str) -> None:
    with pytest.raises(NameRefusedError, match=why):
        ManifestBuilder().add(file(name))
    if len(name.encode()) < 256:
        with pytest.raises(RemoteProtocolError, match=why):
            parse_manifest(serialized(file(name)))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("con", "device"),
        ("NUL", "device"),
        ("aux.txt", "device"),
        ("Com1.tar.gz", "device"),
        ("lpt¹", "device"),
        ("prn .txt", "device"),
        ("hidden:stream", "cannot store"),
        ("what?", "cannot store"),
        ("R.E.M.", "cannot store"),
        ("blank ", "cannot store"),
    ],
)
def test_what_only_windows_refuses_is_the_receivers_matter(name: str, why: str) -> None:
    builder = ManifestBuilder()
    builder.add(file(name))
    data = bytes(builder.build().serialize())
    assert parse_manifest(data, "linux")[0].name == parse_manifest(data, "darwin")[0].name == name
    with pytest.raises(RemoteProtocolError, match=why):
        parse_manifest(data, "win32")


@pytest.mark.parametrize(
    "name",
    [
        "R.E.M.",
        "a: b.txt",
        "con-tent",
        "auxiliary",
        "x" * 255,
        " ",
        "файл",
        "👩‍👩‍👧.jpg",
        "-rf",
        "~",
        "$HOME",
        "comma,",
    ],
)
def test_unusual_names_pass(name: str) -> None:
    if name == "a: b.txt":  # a drive letter only at the top, where a path begins
        with pytest.raises(NameRefusedError):
            ManifestBuilder().add(file(name))
    assert parse_manifest(serialized(folder("d"), file(name, 0)), "linux")[1].name == name


@pytest.mark.parametrize("name", [b"\xff\xfe", b"ok\x80", b"\xed\xa0\x80"])
def test_names_that_are_no_utf8(name: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="UTF-8"):
        parse_manifest(raw(name))


def test_the_name_in_an_error_cannot_steer_the_terminal() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_manifest(serialized(file("a\x1b]0;owned\x07")))
    assert shown(str(caught.value)) == str(caught.value)


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_one_name_twice_is_refused(system: str) -> None:
    with pytest.raises(RemoteProtocolError, match="twice"):
        parse_manifest(serialized(file("a"), file("a")), system)
    with pytest.raises(RemoteProtocolError, match="twice"):
        parse_manifest(serialized(folder("a"), file("a")), system)
    # In different folders they are different files.
    parse_manifest(serialized(folder("x"), folder("y"), file("a", 0), file("a", 1)), system)


@pytest.mark.parametrize(("first", "second"), [("README", "readme"), ("é", "e\u0301"), ("ß", "ss"), ("K", "\u212a")])
def test_names_that_collide_on_some_systems_are_refused_there(first: str, second: str) -> None:
    for system in ("darwin", "win32"):
        with pytest.raises(RemoteProtocolError, match="ignores case"):
            parse_manifest(serialized(file(first), file(second)), system)
        with pytest.raises(RemoteProtocolError, match="ignores case"):
            parse_manifest(serialized(folder(first), file(second)), system)
        parse_manifest(serialized(folder("x"), folder("y"), file(first, 0), file(second, 1)), system)
    builder = ManifestBuilder()
    builder.add(file(first))
    builder.add(file(second))
    assert len(parse_manifest(bytes(builder.build().serialize()), "linux")) == 2


def test_something_in_a_file_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="no folder"):
        parse_manifest(serialized(file("a"), file("b", 0)))


@pytest.mark.parametrize("parent", [0, 1, 7])
def test_folders_come_before_what_they_hold(parent: int) -> None:
    with pytest.raises(RemoteProtocolError, match="no folder"):
        parse_manifest(serialized(file("a", parent), folder("b")))


def test_depth_and_length_of_paths_are_limited() -> None:
    chain = [folder("d", TOP)] + [folder("d", n) for n in range(m.MAX_DEPTH - 1)]
    parse_manifest(serialized(*chain))
    with pytest.raises(RemoteProtocolError, match="deep"):
        parse_manifest(serialized(*chain, file("x", m.MAX_DEPTH - 1)))
    long = [folder("n" * 255, TOP)] + [folder("n" * 255, n) for n in range(11)]
    parse_manifest(serialized(*long))
    with pytest.raises(RemoteProtocolError, match="path is longer"):
        parse_manifest(serialized(*long, file("x", 11)))


def test_sizes_are_limited() -> None:
    with pytest.raises(RemoteProtocolError, match="size"):
        parse_manifest(serialized(file("a", TOP, m.MAX_FILE_BYTES + 1)))
    with pytest.raises(RemoteProtocolError, match="size"):
        parse_manifest(serialized(folder("a")._replace(size=1)))


@pytest.mark.parametrize("data", [b"", b"\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\1", b"\0\0\0\0x"])
def test_truncated_or_too_long(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_manifest(data)


def test_every_truncation_is_refused() -> None:
    data = serialized(folder("folder"), file("name.txt", 0), file("other"))
    for end in range(len(data)):
        with pytest.raises(RemoteProtocolError):
            parse_manifest(data[:end])


def test_unknown_flags_are_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        parse_manifest(raw(b"x", flags=4))


def test_the_number_of_entries_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m, "MAX_ENTRIES", 3)
    parse_manifest(serialized(*(file(str(n)) for n in range(3))))
    with pytest.raises(RemoteProtocolError, match="too long"):
        parse_manifest(serialized(*(file(str(n)) for n in range(4))))
    builder = ManifestBuilder()
    for n in range(3):
        builder.add(file(str(n)))
    with pytest.raises(NameRefusedError, match="one more"):
        builder.add(file("3"))


def test_the_length_of_the_list_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m, "MAX_MANIFEST_BYTES", 100)
    builder = ManifestBuilder()
    builder.add(file("x" * 60))
    with pytest.raises(NameRefusedError, match="longer"):
        builder.add(file("y"))
    with pytest.raises(RemoteProtocolError, match="too long"):
        parse_manifest(serialized(file("x" * 60), file("y" * 60)))


def test_time_grows_with_the_list_and_not_faster() -> None:
    """A chain of deep folders with many files in each would show anything quadratic."""
    chain = [folder("d" * 20, TOP)] + [folder("d" * 20, n) for n in range(m.MAX_DEPTH - 2)]
    data = serialized(*chain, *(file(f"file{n}", n % len(chain)) for n in range(20_000)))
    started = time.process_time()
    parse_manifest(data)
    assert time.process_time() - started < 3  # about 0.1 s; quadratic would be minutes


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    try:
        parsed = parse_manifest(data)
    except RemoteProtocolError:
        return
    assert parse_manifest(bytes(parsed.serialize())).entries == parsed.entries


@given(st.data())
def test_any_records(data: st.DataObject) -> None:
    """Well-formed bytes with any numbers and names: refused, or harmless."""
    names = st.one_of(st.sampled_from(["a", "A", "..", "x/y", "con", "d"]), st.text(max_size=8))
    count = data.draw(st.integers(0, 6))
    records, blob = b"", b""
    for _ in range(count):
        name = data.draw(names).encode(errors="replace")[:255]
        flags, parent = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 7))
        size = data.draw(st.sampled_from([0, 1, 1 << 63]))
        records += struct.pack(
            ">BIQqB", flags, parent, size, data.draw(st.integers(-(1 << 63), (1 << 63) - 1)), len(name)
        )
        blob += name
    try:
        parsed = parse_manifest(struct.pack(">I", count) + records + blob)
    except RemoteProtocolError:
        return
    for number in range(len(parsed)):
        parts = parsed.path(number).split("/")
        assert ".." not in parts
        assert "" not in parts
        assert "." not in parts
