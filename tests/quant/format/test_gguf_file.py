"""A GGUF parser must survive every lie that a header can tell, and read what others write."""

import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.format.errors import FileFormatError, InputError
from quant.format.gguf_file import MAX_KEYS, MAX_STRINGS, MAX_TENSORS, GgufFile
from quant.format.gguf_types import ALL_TYPES, F32, Q4_0
from quant.format.gguf_writer import GgufLayout, TensorSlot, gguf_writer

ROOT = Path(__file__).resolve().parents[3]
U8, I8, U32, F32_VALUE, BOOL, STRING, ARRAY, U64 = 0, 1, 4, 6, 7, 8, 9, 10


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name: str, kind: int, payload: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + payload


def tensor(name: str, *sizes: int, kind: int = 0, offset: int = 0) -> bytes:
    """`sizes` in the file's own order: the row length comes first."""
    head = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
    return text(name) + head + struct.pack("<IQ", kind, offset)


def file_bytes(
    keys: list[bytes],
    tensors: list[bytes],
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: bytes = struct.pack("<I", 3),
    tensor_count: int | None = None,
    key_count: int | None = None,
) -> bytes:
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(keys) if key_count is None else key_count,
    )
    head = magic + version + struct.pack("<QQ", *counts) + b"".join([*keys, *tensors])
    return head.ljust(-(-len(head) // 32) * 32, b"\0") + data


ONE = tensor("t", 8)
DATA = bytes(32)

MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a GGUF file"),
    "three bytes": (b"GGU", "not a GGUF file"),
    "bad magic": (file_bytes([], [], magic=b"GGML"), "not a GGUF file"),
    "version 0": (file_bytes([], [], version=struct.pack("<I", 0)), "version 0"),
    "version 1": (file_bytes([], [], version=struct.pack("<I", 1)), "version 1"),
    "version 4": (file_bytes([], [], version=struct.pack("<I", 4)), "version 4"),
    "big endian": (file_bytes([], [], version=struct.pack(">I", 3)), "big-endian"),
    "no counts": (b"GGUF" + struct.pack("<I", 3), "tensor count"),
    "tensor count": (file_bytes([], [], tensor_count=MAX_TENSORS + 1), "tensors; the limit"),
    "tensor count 2^64-1": (file_bytes([], [], tensor_count=2**64 - 1), "tensors; the limit"),
    "key count": (file_bytes([], [], key_count=MAX_KEYS + 1), "metadata keys; the limit"),
    "key count 2^64-1": (file_bytes([], [], key_count=2**64 - 1), "metadata keys; the limit"),
    "more keys than there are": (file_bytes([], [], key_count=3), "ends inside"),
    "more tensors than there are": (file_bytes([], [], tensor_count=3), "tensor"),
    "key of 1 GiB": (file_bytes([struct.pack("<Q", 1 << 30)], []), "name of a key claims"),
    "key of 65 KiB": (file_bytes([text("k" * (65 << 10))], []), "name of a key claims"),
    "key not UTF-8": (file_bytes([text(b"\xff\xfe")], []), "not UTF-8"),
    "key twice": (file_bytes([key("k", U8, b"\1")] * 2, []), "'k' appears twice"),
    "value type 13": (file_bytes([key("k", 13, b"\0" * 64)], []), "'k' has the unknown value"),
    "value type 2^32-1": (file_bytes([key("k", 2**32 - 1, bytes(64))], []), "unknown value"),
    "bool of 2": (file_bytes([key("k", BOOL, b"\2")], []), "'k' holds a boolean"),
    "string of 1 GiB": (file_bytes([key("k", STRING, struct.pack("<Q", 1 << 30))], []), "'k'"),
    "string of 2^64-1": (file_bytes([key("k", STRING, b"\xff" * 8)], []), "'k'"),
    "string not UTF-8": (file_bytes([key("k", STRING, text(b"\xff"))], []), "'k' is not UTF-8"),
    "array of arrays": (
        file_bytes([key("k", ARRAY, struct.pack("<IQ", ARRAY, 1) + bytes(64))], []),
        "'k' is an array of arrays",
    ),
    "array of 2^60 numbers": (
        file_bytes([key("k", ARRAY, struct.pack("<IQ", U64, 1 << 60))], []),
        "ends inside the value of key 'k'",
    ),
    "array of unknown type": (
        file_bytes([key("k", ARRAY, struct.pack("<IQ", 99, 1) + bytes(64))], []),
        "'k' has the unknown value",
    ),
    "array of too many strings": (
        file_bytes([key("k", ARRAY, struct.pack("<IQ", STRING, MAX_STRINGS + 1))], []),
        "'k' claims",
    ),
    "array of missing strings": (
        file_bytes([key("k", ARRAY, struct.pack("<IQ", STRING, 1000))], []),
        "ends inside the value of key 'k'",
    ),
    "array with a long string": (
        file_bytes([key("k", ARRAY, struct.pack("<IQQ", STRING, 1, 1 << 40))], []),
        "ends inside the value of key 'k'",
    ),
    "array with a string not UTF-8": (
        file_bytes(
            [key("k", ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + text(b"\xc3"))], []
        ),
        "'k' has text that is not UTF-8 at index 1",
    ),
    "alignment 0": (
        file_bytes([key("general.alignment", U32, struct.pack("<I", 0))], [ONE], DATA),
        "'general.alignment' must be a power of two",
    ),
    "alignment 3": (
        file_bytes([key("general.alignment", U32, struct.pack("<I", 3))], [ONE], DATA),
        "'general.alignment' must be a power of two",
    ),
    "alignment 2^31": (
        file_bytes([key("general.alignment", U32, struct.pack("<I", 1 << 31))], [ONE], DATA),
        "'general.alignment' must be a power of two",
    ),
    "alignment as text": (
        file_bytes([key("general.alignment", STRING, text("32"))], [ONE], DATA),
        "'general.alignment' must be a power of two",
    ),
    "alignment that the offsets do not have": (
        file_bytes(
            [key("general.alignment", U32, struct.pack("<I", 64))],
            [ONE, tensor("u", 8, offset=32)],
            DATA * 2,
        ),
        "tensor 'u' starts at 32, not a multiple of 64",
    ),
    "alignment that the data does not have": (
        file_bytes([key("general.alignment", U32, struct.pack("<I", 1 << 12))], [ONE], DATA),
        "'t' needs bytes up to",
    ),
    "tensor twice": (file_bytes([], [ONE, tensor("t", 8, offset=32)], DATA * 2), "'t' appears"),
    "tensor name of 65 KiB": (file_bytes([], [tensor("t" * (65 << 10), 8)], DATA), "name of a"),
    "no dimensions": (file_bytes([], [tensor("t")], DATA), "'t' claims 0 dimensions"),
    "5 dimensions": (file_bytes([], [tensor("t", 1, 1, 1, 1, 1)], DATA), "'t' claims 5"),
    "2^32-1 dimensions": (
        file_bytes([], [text("t") + struct.pack("<I", 2**32 - 1)], DATA),
        "'t' claims 4294967295 dimensions",
    ),
    "dimension 0": (file_bytes([], [tensor("t", 8, 0)], DATA), "'t' has the impossible shape"),
    "dimension -1": (file_bytes([], [tensor("t", 2**64 - 1)], DATA), "'t' has the impossible"),
    "product overflows": (
        file_bytes([], [tensor("t", 1 << 32, 1 << 32, 2)], DATA),
        "'t' has the impossible shape",
    ),
    "type 255": (file_bytes([], [tensor("t", 8, kind=255)], DATA), "unknown ggml type 255"),
    "removed type": (file_bytes([], [tensor("t", 32, kind=4)], DATA), "unknown ggml type 4"),
    "half a block": (file_bytes([], [tensor("t", 48, kind=2)], DATA), "not whole Q4_0 blocks"),
    "misaligned": (file_bytes([], [tensor("t", 8, offset=16)], DATA * 2), "not a multiple of 32"),
    "past the end": (file_bytes([], [tensor("t", 8, offset=32)], DATA), "'t' needs bytes up to"),
    "offset overflows": (
        file_bytes([], [tensor("t", 8, offset=2**64 - 32)], DATA),
        "'t' needs bytes up to",
    ),
    "larger than the file": (file_bytes([], [tensor("t", 1 << 40)], DATA), "'t' needs bytes"),
    "overlap": (
        file_bytes([], [tensor("t", 16), tensor("u", 8, offset=32)], DATA * 2),
        "'t' and 'u' overlap",
    ),
    "same place": (file_bytes([], [ONE, tensor("u", 8)], DATA), "overlap"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_every_malformed_header_is_refused_by_name(case: str, tmp_path: Path) -> None:
    content, problem = MALFORMED[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises(FileFormatError, match=r"bad\.gguf") as caught:
            GgufFile(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert problem in str(caught.value)
    assert peak < 1 << 20
    assert time.process_time() - started < 1


OPEN_ALL = """
import resource, sys, time
from pathlib import Path
from quant.format.errors import FileFormatError
from quant.format.gguf_file import GgufFile
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path(sys.argv[1]).iterdir()):
    started = time.process_time()
    try:
        GgufFile(path)
    except FileFormatError:
        assert time.process_time() - started < 1, path
    else:
        raise AssertionError(f"{path} was read")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_no_malformed_file_takes_memory(tmp_path: Path) -> None:
    """All of them in one process, whose largest resident size hardly moves; kB on Linux."""
    for number, (content, _) in enumerate(MALFORMED.values()):
        (tmp_path / f"{number:03}.gguf").write_bytes(content)
    command = [sys.executable, "-c", OPEN_ALL, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 10 << 10


def test_the_well_formed_neighbours_are_read(tmp_path: Path) -> None:
    """The pieces that the malformed files are made of are right when nothing is wrong with them."""
    keys = [
        key("general.alignment", U32, struct.pack("<I", 64)),
        key("text", STRING, text("é")),
        key("flag", BOOL, b"\1"),
        key("number", F32_VALUE, struct.pack("<f", 0.5)),
        key("names", ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + text("")),
        key("bytes", ARRAY, struct.pack("<IQ", I8, 2) + b"\xff\1"),
    ]
    tensors = [tensor("u", 4, 2), tensor("t", 32, kind=2, offset=64)]
    content = file_bytes(keys, tensors)
    content = content.ljust(-(-len(content) // 64) * 64, b"\0") + bytes(64) + bytes(range(18))
    path = tmp_path / "good.gguf"
    path.write_bytes(content)
    file = GgufFile(path)
    assert file.metadata["names"] == ["a", ""] and file.metadata["text"] == "é"
    assert file.metadata["flag"] is True and file.metadata["number"] == 0.5
    assert np.array_equal(np.asarray(file.metadata["bytes"]), [-1, 1])
    assert file.tensors["u"].shape == (2, 4) and file.tensors["t"].type is Q4_0
    assert file.raw("t").tobytes() == bytes(range(18))
    file.forget("t")
    assert file.raw("t").tobytes() == bytes(range(18))


def test_version_2_has_the_same_layout(tmp_path: Path) -> None:
    path = tmp_path / "two.gguf"
    path.write_bytes(file_bytes([], [ONE], DATA, version=struct.pack("<I", 2)))
    assert GgufFile(path).version == 2


def sample(path: Path) -> bytes:
    """A small file with every kind of value, written by us."""
    metadata: dict[str, Any] = {
        "a": "text",
        "b": np.uint32(7),
        "c": ["x", "yz"],
        "d": np.arange(3, dtype=np.int32),
    }
    slots = [TensorSlot("first", F32, (2, 3)), TensorSlot("second", Q4_0, (1, 64))]
    with gguf_writer(path, GgufLayout(metadata, slots)) as writer:
        writer.write("first", np.arange(6, dtype=np.float32).view(np.uint8))
        writer.write("second", np.arange(36, dtype=np.uint8))
    return path.read_bytes()


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    content = sample(tmp_path / "whole.gguf")
    file = GgufFile(tmp_path / "whole.gguf")
    last = file.tensors["second"]
    path = tmp_path / "cut.gguf"
    for length in range(last.offset + last.nbytes):
        path.write_bytes(content[:length])
        with pytest.raises(FileFormatError):
            GgufFile(path)


def test_every_flipped_byte_is_read_or_refused(tmp_path: Path) -> None:
    """No header byte can cause anything but a FileFormatError, whatever it becomes."""
    content = sample(tmp_path / "whole.gguf")
    header = GgufFile(tmp_path / "whole.gguf").data_offset
    path = tmp_path / "flipped.gguf"
    refused = 0
    for at in range(header):
        for value in (0, 0xFF, content[at] ^ 0x80, content[at] ^ 1):
            path.write_bytes(content[:at] + bytes([value]) + content[at + 1 :])
            try:
                GgufFile(path)
            except FileFormatError:
                refused += 1
    assert refused > header


def test_header_limit_comes_before_the_file_size(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    count = 100 << 20
    with path.open("wb") as file:
        file.write(file_bytes([key("k", ARRAY, struct.pack("<IQ", U8, count))], []))
        file.truncate(count + 4096)
    with pytest.raises(FileFormatError, match="'k' reaches past the 64 MiB header limit"):
        GgufFile(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"none\.gguf: cannot be read"):
        GgufFile(tmp_path / "none.gguf")
    with pytest.raises(FileFormatError, match="cannot be read"):
        GgufFile(tmp_path)


def test_a_large_vocabulary_is_read_quickly(tmp_path: Path) -> None:
    metadata: dict[str, Any] = {"tokens": [f"token{i}" for i in range(50_000)]}
    metadata["merges"] = [f"mer {i}" for i in range(50_000)]
    with gguf_writer(tmp_path / "v.gguf", GgufLayout(metadata, [])):
        pass
    best = min(_seconds_to_open(tmp_path / "v.gguf") for _ in range(3))
    assert best < 0.3
    assert GgufFile(tmp_path / "v.gguf").metadata["merges"] == metadata["merges"]


def _seconds_to_open(path: Path) -> float:
    started = time.process_time()
    GgufFile(path)
    return time.process_time() - started


def test_the_reference_reader_agrees(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    sample(tmp_path / "whole.gguf")
    reader = gguf.GGUFReader(tmp_path / "whole.gguf")
    file = GgufFile(tmp_path / "whole.gguf")
    assert [t.name for t in reader.tensors] == list(file.tensors)
    for theirs in reader.tensors:
        ours = file.tensors[theirs.name]
        assert tuple(int(size) for size in theirs.shape)[::-1] == ours.shape
        assert theirs.data_offset == ours.offset and theirs.n_bytes == ours.nbytes
        assert theirs.data.tobytes() == file.raw(ours.name).tobytes()
    for name, value in file.metadata.items():
        assert reader.fields[name].contents() == (
            value.tolist() if isinstance(value, np.ndarray) else value
        )


def test_the_reference_writer_is_read(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_float64("some.double", 0.1)
    writer.add_tensor("w", np.arange(6, dtype=np.float16).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "theirs.gguf")
    assert file.metadata["general.architecture"] == "llama"
    assert file.metadata["some.double"] == 0.1
    assert np.array_equal(np.asarray(file.metadata["some.numbers"]), [1, 2, 3])
    assert file.raw("w").view(np.float16).tolist() == [0, 1, 2, 3, 4, 5]


def test_type_table_is_that_of_ggml() -> None:
    gguf = pytest.importorskip("gguf")
    theirs = {
        (kind.name, kind.value, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType
    }
    ours = {(kind.name, kind.id, kind.block, kind.block_bytes) for kind in ALL_TYPES}
    assert ours >= theirs - {entry for entry in theirs if entry[1] > 41}
    assert len({kind.id for kind in ALL_TYPES}) == len(ALL_TYPES)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    layout = GgufLayout({}, [TensorSlot("t", F32, (1,)), TensorSlot("u", F32, (1,))])
    with pytest.raises(KeyboardInterrupt), gguf_writer(tmp_path / "x.gguf", layout) as writer:
        writer.write("t", np.zeros(4, np.uint8))
        (aside,) = tmp_path.iterdir()
        with pytest.raises(FileFormatError, match="not a GGUF file"):
            GgufFile(aside)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_an_old_file_survives_a_failed_write(tmp_path: Path) -> None:
    before = sample(tmp_path / "x.gguf")
    layout = GgufLayout({}, [TensorSlot("t", F32, (1,))])
    with pytest.raises(ZeroDivisionError), gguf_writer(tmp_path / "x.gguf", layout):
        raise ZeroDivisionError
    assert (tmp_path / "x.gguf").read_bytes() == before


def test_a_file_larger_than_the_disk_is_refused_at_once(tmp_path: Path) -> None:
    layout = GgufLayout({}, [TensorSlot("t", F32, (1 << 50,))])
    with pytest.raises(InputError, match="bytes"), gguf_writer(tmp_path / "x.gguf", layout):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_made_and_a_file_in_its_place_is_named(tmp_path: Path) -> None:
    layout = GgufLayout({}, [])
    with gguf_writer(tmp_path / "new" / "x.gguf", layout):
        pass
    assert GgufFile(tmp_path / "new" / "x.gguf").tensors == {}
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"), gguf_writer(tmp_path / "file" / "x", layout):
        pass
    with pytest.raises(InputError, match="new"), gguf_writer(tmp_path / "new", layout):
        pass
