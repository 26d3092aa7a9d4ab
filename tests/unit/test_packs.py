"""Names of packs, references to them, and their contents."""

from __future__ import annotations

import io
import lzma
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distier.domain import codec
from distier.domain.objects import Listed
from distier.domain.packs import (
    NAME_BYTES_MAX,
    Member,
    Pack,
    common_directory,
    directories_of,
    module_path,
    parse_content,
    parse_index,
    parse_pack,
    parse_reference,
    read_member,
    read_members,
    tar_of,
)
from distier.errors import Corrupt

NAMES = st.text(st.sampled_from("ab.%~@-+ü é/"), min_size=1, max_size=12) | st.text(min_size=1, max_size=60)
IDS = st.lists(NAMES, min_size=1, max_size=6).map("/".join).filter(lambda name: len(name.encode()) <= 256)
LONG = ["x" * 230, f"{'d' * 90}/{'e' * 90}/f", "ü" * 100, f"{'g' * 199}/@h", "a" * 99, "b" * 100, "c/" * 100 + "c"]


@given(st.lists(IDS, min_size=1, max_size=8, unique=True), st.integers(1, 10**9))
def test_pack_is_found_for_each_member_and_named_by_its_record(ids: list[str], number: int) -> None:
    paths = [module_path(id) for id in ids]
    pack = Pack(common_directory(paths), number, "0123abcd")
    key = pack.index_key("ns", paths)
    index = parse_index("ns", Listed(key, 9, 77))
    assert index is not None
    assert (index.pack, index.modified_ms) == (pack, 77)
    assert len(key.rpartition("/")[2]) <= NAME_BYTES_MAX + 4
    assert parse_pack(str(pack)) == pack == parse_content("ns", pack.key("ns"))
    assert parse_content("ns", key) is None
    assert parse_index("ns", Listed(pack.key("ns"), 9, 77)) is None
    for id, path in zip(ids, paths, strict=True):
        assert index.may_have(path)
        assert pack.directory in directories_of(path)
        assert parse_reference(id, pack.reference(id)) == pack


def test_directories_are_in_the_order_of_copies() -> None:
    assert directories_of("a/b/c") == ["a/b/", "a/", ""]
    places = [Pack(directory, 5, "0123abcd").place for directory in directories_of("a/b/c")]
    assert places == sorted(places)
    assert Pack("a/", 1, "ffffffff").place < Pack("a/", 2, "00000000").place < Pack("", 1, "00000000").place


def test_common_directory_is_above_all_and_never_deeper_than_what_is_replaced() -> None:
    assert common_directory(["a/b/c", "a/b/d/e"]) == "a/b/"
    assert common_directory(["a/b", "ab/c"]) == ""
    assert common_directory(["a/b/c"], ["a/"]) == "a/"
    assert common_directory(["a/b/c", "a/b/d"], ["a/b/", ""]) == ""
    assert common_directory(["same"]) == ""


def test_listing_does_not_take_a_pack_for_one_that_may_have_other_modules() -> None:
    pack = Pack("skills/", 3, "0123abcd")
    index = parse_index("ns", Listed(pack.index_key("ns", ["skills/docx/SKILL.md", "skills/pdf"]), 9, 0))
    assert index is not None
    wanted = {"skills/docx": True, "skills/image/x": True, "skills/pdf": True, "skills/adr": False, "skills/xlsx": False,
              "tools/docx": False, "skills": False}  # fmt: skip
    assert {path: index.may_have(path) for path in wanted} == wanted


@pytest.mark.parametrize(
    "reference", [None, "", "^", "^0.1-0123abcd", "^9.1-0123abcd", "^1.1-0123ABCD", "ns/modules/a/@1.xz"]
)
def test_what_is_no_reference_names_no_pack(reference: str | None) -> None:
    assert parse_reference("a/b", reference) is None


def members(ids: list[str]) -> list[Member]:
    return [
        Member(f"{module_path(id)}/@00000001-00000000000042-9f3a2b1c.md", f"# {id}\n".encode() * 50, 1) for id in ids
    ]


def test_members_are_read_as_tar_reads_them() -> None:
    made = members(["a", "a/b", "ü", *LONG])
    packed = codec.compress_xz(tar_of(made))
    assert dict(read_members(packed)) == {m.name: m.content for m in made}
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:xz") as tar:
        assert {info.name: tar.extractfile(info).read() for info in tar} == {m.name: m.content for m in made}  # type: ignore[union-attr]
    for one in made:
        assert read_member(packed, one.name) == one.content
    assert read_member(packed, "a/@00000001-00000000000043-9f3a2b1c.md") is None


def test_archives_of_other_writers_are_read() -> None:
    out = io.BytesIO()
    for format in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:xz", format=format) as tar:
            folder = tarfile.TarInfo("a")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            for name in ("a/b", "d" * 90 + "/" + "e" * 90):
                info = tarfile.TarInfo(name)
                info.size = 3
                tar.addfile(info, io.BytesIO(b"xyz"))
        assert dict(read_members(out.getvalue())) == {"a/b": b"xyz", "d" * 90 + "/" + "e" * 90: b"xyz"}


def test_no_more_is_decompressed_than_needed() -> None:
    made = [*members(["first"]), Member("big/@1", bytes(3_000_000), 0)]
    packed = bytearray(codec.compress_xz(tar_of(made)))
    packed[-40:] = bytes(40)  # the end is damaged, and nobody reads it
    assert read_member(bytes(packed), made[0].name) == made[0].content
    with pytest.raises(Corrupt):
        dict(read_members(bytes(packed)))


@given(st.data())
def test_damaged_packs_are_corrupt_or_have_other_members(data: st.DataObject) -> None:
    tar = bytearray(tar_of(members(["a", "b" * 150])))
    for _ in range(data.draw(st.integers(1, 3))):
        tar[data.draw(st.integers(0, len(tar) - 1))] = data.draw(st.integers(0, 255))
    packed = codec.compress_xz(bytes(tar[: data.draw(st.sampled_from([len(tar), 700, 512, 100, 0]))]))
    if data.draw(st.booleans()):
        packed = packed[: data.draw(st.integers(0, len(packed)))]
    try:
        for name, content in read_members(packed):
            assert isinstance(name, str) and isinstance(content, bytes)
    except Corrupt:
        pass


def test_bombs_are_refused() -> None:
    header = tar_of([Member("a/@1", b"", 0)])[:512]
    large = bytearray(header)
    large[124:136] = b"77777777777\0"
    with pytest.raises(Corrupt):
        list(read_members(lzma.compress(bytes(large) + bytes(100_000_000))))
