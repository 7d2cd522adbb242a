"""Hostile files are refused by name; what we write, the reference reader reads."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.format.errors import FileFormatError, InputError, UnsupportedModelError
from quant.format.safetensors_file import SafetensorsFile
from quant.format.safetensors_writer import INDEX_NAME, ShardedWriter

Entry = dict[str, Any]


def entry(begin: int, end: int, shape: list[Any], dtype: Any = "U8") -> Entry:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    return path


GOOD = {"a": entry(0, 4, [2, 2]), "b": entry(4, 8, [4])}


def test_a_good_file(tmp_path: Path) -> None:
    file = SafetensorsFile(write(tmp_path / "x", GOOD, bytes(range(8))))
    np.testing.assert_array_equal(file.load("a"), [[0, 1], [2, 3]])
    np.testing.assert_array_equal(file.load("b"), [4, 5, 6, 7])


BAD_HEADERS: dict[str, tuple[Any, int, str]] = {
    "truncated data": (GOOD, 7, "'b' claims bytes 4 to 8.*7 bytes"),
    "tail is not covered": (GOOD, 9, "1 bytes after the last tensor"),
    "hole": ({"a": entry(0, 4, [4]), "b": entry(5, 8, [3])}, 8, "1 bytes before 'b'"),
    "overlap": ({"a": entry(0, 5, [5]), "b": entry(4, 8, [4])}, 8, "'b' overlaps"),
    "same range twice": ({"a": entry(0, 8, [8]), "b": entry(0, 8, [8])}, 8, "'b' overlaps"),
    "size of dtype": ({"a": entry(0, 8, [8], "F32")}, 8, "'a'.*needs 32 bytes but claims 8"),
    "unknown dtype": ({"a": entry(0, 8, [8], "F4")}, 8, "'a'.*unknown dtype 'F4'"),
    "dtype is no name": ({"a": entry(0, 8, [8], ["U8"])}, 8, "'a'.*unknown dtype"),
    "backwards": ({"a": entry(8, 0, [8])}, 8, "'a' claims bytes"),
    "negative offset": ({"a": entry(-8, 0, [8])}, 8, "'a' has invalid data_offsets"),
    "three offsets": (
        {"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8, 8]}},
        8,
        "'a' has invalid data_offsets",
    ),
    "negative shape": ({"a": entry(0, 8, [-8])}, 8, "'a' has an invalid shape"),
    "shape of floats": ({"a": entry(0, 8, [8.0])}, 8, "'a' has an invalid shape"),
    "shape of booleans": ({"a": entry(0, 1, [True])}, 1, "'a' has an invalid shape"),
    "shape overflows": ({"a": entry(0, 8, [1 << 62, 1 << 62])}, 8, "'a'.*needs"),
    "absurd offset": ({"a": entry(0, 1 << 62, [1 << 62])}, 8, "'a' claims bytes"),
    "missing key": ({"a": {"dtype": "U8", "shape": [8]}}, 8, "'a' needs dtype"),
    "unknown key": ({"a": entry(0, 8, [8]) | {"x": 1}}, 8, "'a' needs dtype"),
    "entry is a list": ({"a": []}, 8, "'a' needs dtype"),
    "header is a list": ([], 0, "not a JSON object"),
    "header is not JSON": (b"{", 0, "not JSON"),
    "header is not UTF-8": (b"\xff\xfe", 0, "not JSON"),
    "nested very deep": (b"[" * 100_000, 0, "not JSON"),
    "huge number": (b'{"a":' + b"9" * 10_000 + b"}", 0, "not JSON"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, 0, "__metadata__"),
    "duplicate": (b'{"a": 1, "a": 2}', 0, "names 'a' twice"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_headers_are_refused(tmp_path: Path, case: str) -> None:
    header, data_bytes, message = BAD_HEADERS[case]
    path = write(tmp_path / "bad.safetensors", header, bytes(data_bytes))
    with pytest.raises(FileFormatError, match=f"bad.safetensors.*{message}"):
        SafetensorsFile(path)


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, 101 << 20, 1000])
def test_header_length_beyond_the_file_or_the_limit(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "x", GOOD, bytes(8), length=length)
    with pytest.raises(FileFormatError, match="claims a header"):
        SafetensorsFile(path)


@pytest.mark.parametrize("content", [b"", b"1234567"])
def test_files_too_short(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match="too short"):
        SafetensorsFile(path)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            SafetensorsFile(path)


def test_a_file_that_shrinks_after_opening_fails_the_load_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "x", GOOD, bytes(8))
    file = SafetensorsFile(path)
    path.write_bytes(path.read_bytes()[:-2])
    np.testing.assert_array_equal(file.load("a"), np.zeros((2, 2)))
    with pytest.raises(FileFormatError, match="'b' ends early"):
        file.load("b")


@given(content=st.binary(max_size=200))
@settings(max_examples=200)
def test_random_bytes_never_do_worse_than_an_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(len(content).to_bytes(8, "little") + content)
    try:
        SafetensorsFile(path)
    except InputError as error:
        assert "fuzz.safetensors" in str(error)


@given(place=st.integers(0, 300), byte=st.integers(0, 255))
@settings(max_examples=300)
def test_one_changed_byte_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "flip.safetensors"
    content = bytearray(write(path, GOOD, bytes(8)).read_bytes())
    content[place % len(content)] = byte
    path.write_bytes(content)
    try:
        file = SafetensorsFile(path)
        assert sum(file.load(name).nbytes for name in file.tensors) == 8
    except FileFormatError:
        pass


SAMPLES: dict[str, npt.NDArray[Any]] = {
    "z.bf16": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16),
    "odd": np.arange(3, dtype=np.int8),
    "wide": np.array([1, -2], dtype=np.int64),
    "a": np.linspace(0, 1, 7, dtype=np.float32),
    "fp8": np.arange(5).astype(ml_dtypes.float8_e4m3fn),
    "scalar": np.array(3.5, dtype=np.float16),
    "empty": np.zeros((0, 4), dtype=np.int32),
    "transposed": np.arange(12, dtype=np.int32).reshape(3, 4).T,
}


def write_samples(directory: Path, names: list[str], max_shard_bytes: int = 1000) -> None:
    directory.mkdir()
    with ShardedWriter(directory, max_shard_bytes, {"by": "test"}) as writer:
        for name in names:
            writer.add(name, SAMPLES[name])


def test_reference_reader_reads_one_file(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    reader = pytest.importorskip("safetensors.torch")
    write_samples(tmp_path / "out", list(SAMPLES))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    theirs = reader.load_file(tmp_path / "out" / "model.safetensors")
    ours = SafetensorsFile(tmp_path / "out" / "model.safetensors")
    assert set(theirs) == set(ours.tensors) == set(SAMPLES)
    for name, array in SAMPLES.items():
        assert ours.load(name).dtype == array.dtype
        np.testing.assert_array_equal(ours.load(name), array)
        assert str(theirs[name].dtype) == f"torch.{array.dtype.name}"
        assert theirs[name].reshape(-1).view(torch.uint8).numpy().tobytes() == array.tobytes()
    assert ours.metadata == {"by": "test", "format": "pt"}


def test_bytes_do_not_depend_on_the_order_of_adding(tmp_path: Path) -> None:
    write_samples(tmp_path / "one", list(SAMPLES))
    write_samples(tmp_path / "two", list(reversed(SAMPLES)))
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_every_tensor_is_aligned_for_its_dtype(tmp_path: Path) -> None:
    write_samples(tmp_path / "out", list(SAMPLES))
    file = SafetensorsFile(tmp_path / "out" / "model.safetensors")
    assert all(info.begin % info.dtype.itemsize == 0 for info in file.tensors.values())


@given(order=st.permutations(list(SAMPLES)), limit=st.integers(1, 120))
@settings(max_examples=30)
def test_shards_keep_the_limit_and_lose_nothing(
    tmp_path_factory: pytest.TempPathFactory, order: list[str], limit: int
) -> None:
    directory = tmp_path_factory.mktemp("shards") / "out"
    write_samples(directory, order, limit)
    files = {path.name: SafetensorsFile(path) for path in directory.glob("*.safetensors")}
    found = [name for file in files.values() for name in file.tensors]
    assert sorted(found) == sorted(SAMPLES)
    for file in files.values():
        sizes = [info.num_bytes for info in file.tensors.values()]
        assert sum(sizes) <= limit or sum(size > 0 for size in sizes) == 1
    if len(files) == 1:
        assert list(files) == ["model.safetensors"]
        return
    count = len(files)
    assert sorted(files) == [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    index = json.loads((directory / INDEX_NAME).read_text())
    assert index["weight_map"] == {n: f for f, file in files.items() for n in file.tensors}
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in SAMPLES.values())


def test_nothing_loads_before_finish_or_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), ShardedWriter(tmp_path, 8) as writer:
        for name in ("a", "wide", "odd"):
            writer.add(name, SAMPLES[name])
            assert not list(tmp_path.glob("*.safetensors*"))
        raise KeyError
    assert not list(tmp_path.glob("*.safetensors*"))


def test_memory_holds_no_shard(tmp_path: Path) -> None:
    """32 tensors of 1 MiB in one shard: the copy buffer of 1 MiB and little else is taken."""
    array = np.zeros(1 << 20, dtype=np.uint8)
    tracemalloc.start()
    try:
        with ShardedWriter(tmp_path) as writer:
            for i in range(32):
                writer.add(str(i), array)
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()


def test_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"'a'.*complex128"):
        ShardedWriter(tmp_path).add("a", np.zeros(1, dtype=np.complex128))


def test_a_name_is_added_once(tmp_path: Path) -> None:
    writer = ShardedWriter(tmp_path, 1)
    writer.add("a", SAMPLES["a"])
    writer.add("odd", SAMPLES["odd"])
    for name in ("a", "odd"):
        with pytest.raises(AssertionError, match="twice"):
            writer.add(name, SAMPLES[name])
    writer.finish()
