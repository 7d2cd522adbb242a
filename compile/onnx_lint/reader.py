"""Reads anybody's graph from its protobuf; field numbers are those of onnx.proto3."""

from pathlib import Path

from compile.onnx_lint.graph import DTYPES, Attribute, Node, OnnxGraph, Place, Tensor, Value
from compile.onnx_lint.wire import BYTES, FIXED32, VARINT, Field, WireFile
from quant.format.errors import FileFormatError

MAX_DEPTH = 8
"""Of graphs within graphs."""
MAX_LOOKED_AT = 1 << 22
"""Bytes of integers that are looked at to know whether all are 0: zero points are no larger."""
MAX_RANK = 64
EXTERNAL = 1


def read_onnx(path: Path) -> OnnxGraph:
    """The graph of a file, whoever made it. Weights stay where they are.

    Raises FileFormatError for what is no ONNX model, or one that is too large to be read by
    anybody, and InputError where there is no file.
    """
    file = WireFile(path)
    try:
        return _Reader(file).model()
    finally:
        file.close()


class _Reader:
    def __init__(self, file: WireFile) -> None:
        self._file = file
        self._nodes: list[Node] = []
        self._tensors: dict[str, Tensor] = {}
        self._values: dict[str, Value] = {}
        self._inputs: list[Value] = []
        self._outputs: list[Value] = []

    def model(self) -> OnnxGraph:
        file = self._file
        ir_version, producer, graphs = 0, "", 0
        opsets: dict[str, int] = {}
        metadata: dict[str, str] = {}
        functions: set[str] = set()
        for number, kind, start, end in file.fields(0, file.size):
            if (number, kind) == (1, VARINT):
                ir_version = start
            elif (number, kind) == (2, BYTES):
                producer = file.text(start, end)
            elif (number, kind) == (8, BYTES):
                domain, version = self._opset(start, end)
                opsets[domain] = version
            elif (number, kind) == (7, BYTES):
                graphs += 1
                self._graph(start, end, 0)
            elif (number, kind) == (14, BYTES):
                key, value = self._pair(start, end)
                metadata[key] = value
            elif (number, kind) == (25, BYTES):
                functions.add(self._texts(start, end).get(10, ""))
        if graphs != 1 or not ir_version:
            raise FileFormatError(file.path, "is not an ONNX model, or is damaged")
        return OnnxGraph(
            file.path,
            ir_version,
            opsets,
            producer,
            metadata,
            tuple(self._inputs),
            tuple(self._outputs),
            tuple(self._nodes),
            self._tensors,
            self._values,
            frozenset(functions),
        )

    def _graph(self, start: int, end: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise FileFormatError(self._file.path, f"has graphs nested deeper than {MAX_DEPTH}")
        for number, kind, first, last in self._file.fields(start, end):
            if kind != BYTES:
                continue
            if number == 1:
                self._node(first, last, depth)
            elif number == 5:
                tensor = self._tensor(first, last)
                self._tensors[tensor.name] = tensor
            elif number in (11, 12, 13):
                value = self._value(first, last)
                self._values[value.name] = value
                if depth == 0 and number == 11:
                    self._inputs.append(value)
                elif depth == 0 and number == 12:
                    self._outputs.append(value)

    def _node(self, start: int, end: int, depth: int) -> None:
        file = self._file
        inputs, outputs = list[str](), list[str]()
        texts = {3: "", 4: "", 7: ""}
        attributes: dict[str, Attribute] = {}
        nested: list[tuple[int, int]] = []
        for number, kind, first, last in file.fields(start, end):
            if kind != BYTES:
                continue
            if number == 1:
                inputs.append(file.text(first, last))
            elif number == 2:
                outputs.append(file.text(first, last))
            elif number in texts:
                texts[number] = file.text(first, last)
            elif number == 5:
                self._attribute(first, last, attributes, nested, outputs)
        domain = "" if texts[7] == "ai.onnx" else texts[7]
        node = Node(texts[4], domain, texts[3], tuple(inputs), tuple(outputs), attributes)
        self._nodes.append(node)
        for span in nested:
            self._graph(*span, depth + 1)

    def _attribute(
        self,
        start: int,
        end: int,
        attributes: dict[str, Attribute],
        nested: list[tuple[int, int]],
        outputs: list[str],
    ) -> None:
        file, name = self._file, ""
        value: Attribute | None = None
        integers: list[int] = []
        for part in file.fields(start, end):
            number, kind, first, last = part
            if (number, kind) == (1, BYTES):
                name = file.text(first, last)
            elif (number, kind) == (2, FIXED32):
                value = file.float(first)
            elif (number, kind) == (3, VARINT):
                value = file.integers(part)[0]
            elif (number, kind) == (4, BYTES):
                value = file.text(first, min(last, first + 256))
            elif number == 8:
                integers += file.integers(part)
            elif (number, kind) in ((6, BYTES), (11, BYTES)):
                nested.append((first, last))
            elif (number, kind) == (5, BYTES) and outputs:
                # The value of a Constant node is a weight as any other.
                tensor = self._tensor(first, last, outputs[0])
                self._tensors[tensor.name] = tensor
        if value is not None or integers:
            attributes[name] = tuple(integers) if value is None else value

    def _tensor(self, start: int, end: int, name: str = "") -> Tensor:
        file = self._file
        shape: list[int] = []
        dtype, external, inline = 0, False, 0
        span: tuple[int, int] | None = None
        entries: dict[str, str] = {}
        for part in file.fields(start, end):
            number, kind, first, last = part
            if number == 1:
                shape += file.integers(part)
                if len(shape) > MAX_RANK:
                    raise FileFormatError(file.path, f"has a tensor of {len(shape)} dimensions")
            elif (number, kind) == (2, VARINT):
                dtype = first
            elif (number, kind) == (8, BYTES):
                name = name or file.text(first, last)
            elif (number, kind) == (13, BYTES):
                key, value = self._pair(first, last)
                entries[key] = value
            elif (number, kind) == (14, VARINT):
                external = first == EXTERNAL
            elif kind == BYTES and number in (4, 5, 6, 7, 9, 10, 11):
                inline += last - first
                span = (first, last)
        place = self._place(name, entries) if external else None
        zero = self._all_zero(span, DTYPES.get(dtype, ""))
        known = DTYPES.get(dtype, f"type {dtype}")
        return Tensor(name, known, tuple(shape), inline, span, place, zero)

    def _place(self, name: str, entries: dict[str, str]) -> Place:
        try:
            length = entries.get("length")
            offset = int(entries.get("offset", "0"))
            return Place(entries["location"], offset, None if length is None else int(length))
        except (KeyError, ValueError) as error:
            raise FileFormatError(
                self._file.path, f"tensor {name} does not say where it lies"
            ) from error

    def _all_zero(self, span: tuple[int, int] | None, dtype: str) -> bool | None:
        if span is None or "int" not in dtype or span[1] - span[0] > MAX_LOOKED_AT:
            return None
        return not self._file.bytes(*span).strip(b"\0")

    def _value(self, start: int, end: int) -> Value:
        name, dtype = "", "undefined"
        shape: tuple[int | str | None, ...] | None = None
        for number, kind, first, last in self._file.fields(start, end):
            if (number, kind) == (1, BYTES):
                name = self._file.text(first, last)
            elif (number, kind) == (2, BYTES):
                for type_number, type_kind, inner, outer in self._file.fields(first, last):
                    if (type_number, type_kind) == (1, BYTES):
                        dtype, shape = self._tensor_type(inner, outer)
        return Value(name, dtype, shape)

    def _tensor_type(self, start: int, end: int) -> tuple[str, tuple[int | str | None, ...] | None]:
        dtype, shape = "undefined", None
        for number, kind, first, last in self._file.fields(start, end):
            if (number, kind) == (1, VARINT):
                dtype = DTYPES.get(first, f"type {first}")
            elif (number, kind) == (2, BYTES):
                spans = self._file.fields(first, last)
                shape = tuple(self._size(span) for span in spans if span[:2] == (1, BYTES))
        return dtype, shape

    def _size(self, part: Field) -> int | str | None:
        for field in self._file.fields(part[2], part[3]):
            if field[:2] == (1, VARINT):
                return self._file.integers(field)[0]
            if field[:2] == (2, BYTES):
                return self._file.text(field[2], field[3])
        return None

    def _opset(self, start: int, end: int) -> tuple[str, int]:
        domain, version = "", 0
        for number, kind, first, last in self._file.fields(start, end):
            if (number, kind) == (1, BYTES):
                domain = self._file.text(first, last)
            elif (number, kind) == (2, VARINT):
                version = first
        return ("" if domain == "ai.onnx" else domain), version

    def _pair(self, start: int, end: int) -> tuple[str, str]:
        texts = self._texts(start, end)
        return texts.get(1, ""), texts.get(2, "")

    def _texts(self, start: int, end: int) -> dict[int, str]:
        """Strings of a message by field number, long ones cut."""
        return {
            number: self._file.text(first, min(last, first + (1 << 16)))
            for number, kind, first, last in self._file.fields(start, end)
            if kind == BYTES
        }
