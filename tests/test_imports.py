"""Imports only point left, and a room never drags in what its user has not installed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("quant", "compile", "runtime", "coldpress")
HEAVY = {
    "torch", "transformers", "datasets", "accelerate", "pyarrow", "onnx", "onnxruntime",
    "tensorrt", "tensorrt_rtx", "triton", "llama_cpp", "compressed_tensors", "gguf", "scipy",
    "pandas", "lm_eval",
}  # fmt: skip

# The longest prefix that fits a module decides which of our own modules it may import.
ALLOWED: dict[str, tuple[str, ...]] = {
    "quant.format": ("quant.format",),
    "quant": ("quant",),
    "compile": ("compile", "quant.format"),
    "compile.program": ("quant.format",),
    "compile.families": ("compile.families", "compile.program", "quant.format"),
    "compile.to_gguf": (
        "compile.to_gguf", "compile.gguf_names", "compile.program", "compile.model",
        "compile.families", "compile.open_model", "quant.format",
    ),
    "compile.to_onnx": (
        "compile.to_onnx", "compile.onnx_contract", "compile.onnx_proto", "compile.onnx_bytes",
        "compile.rotation",
        "compile.input_rounding", "compile.program", "compile.model", "compile.families",
        "compile.open_model", "quant.format",
    ),
    "compile.to_tensorrt": (
        "compile.to_tensorrt", "compile.engine_file", "compile.onnx_contract", "compile.onnx_proto",
        "compile.onnx_bytes", "compile.manifest", "compile.program", "quant.format",
    ),
    "compile.to_triton": (
        "compile.to_triton", "compile.engine_file", "compile.onnx_contract", "compile.onnx_proto",
        "compile.model", "quant.format",
    ),
    "runtime": ("runtime", "compile", "quant.format"),
    "runtime.engine": ("runtime.engine",),
    "runtime.confined": ("runtime.confined",),
    "runtime.text": (
        "runtime.text", "runtime.confined", "runtime.engine.request", "runtime.engine.constraint",
        "runtime.machine", "compile.model", "quant.format",
    ),
    "runtime.kernels": ("runtime.kernels",),
    "runtime.executors": (
        "runtime.executors", "runtime.kernels", "runtime.kv_cache", "runtime.machine",
        "runtime.graph_step",
        "runtime.engine.batch", "compile", "quant.format",
    ),
    "runtime.server": (
        "runtime.server", "runtime.service", "runtime.generation", "runtime.text",
        "runtime.engine", "quant.format",
    ),
    "coldpress": ROOMS,
}  # fmt: skip

# The server asks the engine; it does not reach into the engine's books.
PRIVATE_TO_ENGINE = ("runtime.engine.pages", "runtime.engine.scheduler", "runtime.engine.sequence")

THIRD_PARTY: dict[str, set[str]] = {
    "quant.format": {"numpy", "ml_dtypes", "safetensors"},
    "compile.program": set(),
    "compile.families": {"numpy"},
    "runtime.engine": {"numpy"},
}

# The only modules whose top level may need an optional package: each is imported when it is used.
# Of quant, only what the base install's command line reads must do without.
NEEDS_HEAVY = {
    "runtime.executors.torch",
    "runtime.executors.cuda",
    "runtime.executors.onnx",
    "runtime.kernels.triton",
    "runtime.parallel",
    "coldpress.lm_eval",
}


@dataclass(frozen=True)
class Import:
    """One import statement: `module` imports `name`, at its top level or inside a function."""

    module: str
    name: str
    line: int
    at_top: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.name}"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(module: str, source: str) -> Iterator[Import]:
    """Every import, lazy ones too; those for type checkers alone do not count as top level."""

    def walk(node: ast.AST, at_top: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(module, alias.name, child.lineno, at_top)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module}:{child.lineno} imports relatively"
                for alias in child.names:
                    yield Import(module, f"{child.module}.{alias.name}", child.lineno, at_top)
            else:
                lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
                typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
                yield from walk(child, at_top and not lazy and not typing_only)

    yield from walk(ast.parse(source), True)


def all_imports() -> list[Import]:
    paths = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    found = [i for path in paths for i in imports_of(module_name(path), path.read_text("utf-8"))]
    assert len(paths) > 40, "the rooms were not found"
    assert len(found) > 200
    return found


IMPORTS = all_imports()


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def rule_for(module: str, table: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    return table[max((key for key in table if within(module, key)), key=len)]


def is_ours(name: str) -> bool:
    return name.partition(".")[0] in ROOMS


def may_need_heavy(module: str) -> bool:
    in_quant = within(module, "quant") and not within(module, "quant.format")
    return in_quant or any(within(module, other) for other in NEEDS_HEAVY)


def breaks_direction(found: Import) -> bool:
    allowed = rule_for(found.module, ALLOWED)
    return is_ours(found.name) and not any(within(found.name, prefix) for prefix in allowed)


def test_imports_only_point_left() -> None:
    assert [str(found) for found in IMPORTS if breaks_direction(found)] == []


def test_the_server_asks_the_engine_and_not_its_books() -> None:
    for found in IMPORTS:
        if within(found.module, "runtime.server"):
            assert not any(within(found.name, private) for private in PRIVATE_TO_ENGINE), found


def test_no_room_imports_the_face() -> None:
    for found in IMPORTS:
        assert within(found.module, "coldpress") or not within(found.name, "coldpress"), found


def part_of(name: str, folder: str) -> str | None:
    """The part of `folder` that a module belongs to: `cpu` of runtime.executors.cpu.lowering."""
    rest = name.removeprefix(f"{folder}.")
    return rest.split(".")[0] if rest != name else None


@pytest.mark.parametrize("folder", ["runtime.executors", "runtime.kernels"])
def test_executors_do_not_know_each_other(folder: str) -> None:
    for found in IMPORTS:
        ours, theirs = part_of(found.module, folder), part_of(found.name, folder)
        assert None in (ours, theirs) or ours == theirs, found


def test_nothing_in_compile_knows_a_target_but_itself() -> None:
    for found in IMPORTS:
        ours, theirs = part_of(found.module, "compile"), part_of(found.name, "compile")
        if ours and theirs and theirs.startswith("to_"):
            assert ours == theirs, found


@pytest.mark.parametrize("prefix", THIRD_PARTY)
def test_small_rooms_need_little(prefix: str) -> None:
    allowed = THIRD_PARTY[prefix] | set(sys.stdlib_module_names)
    for found in IMPORTS:
        if within(found.module, prefix) and not is_ours(found.name):
            assert found.name.split(".")[0] in allowed, found


def test_heavy_packages_are_imported_when_they_are_used() -> None:
    for found in IMPORTS:
        heavy = found.name.split(".")[0] in HEAVY
        assert not (found.at_top and heavy and not may_need_heavy(found.module)), found


def test_modules_that_need_a_heavy_package_are_imported_lazily() -> None:
    for found in IMPORTS:
        if found.at_top and not may_need_heavy(found.module):
            assert not any(within(found.name, module) for module in NEEDS_HEAVY), found


def test_the_builtin_compile_is_never_shadowed() -> None:
    assert [str(found) for found in IMPORTS if found.name == "compile"] == []


def test_nothing_runs_strings_or_pickles() -> None:
    banned = {"pickle", "marshal", "shelve", "dill"}
    assert [str(found) for found in IMPORTS if found.name.split(".")[0] in banned] == []


def test_the_checks_can_fail() -> None:
    source = "import torch\ndef f():\n    from runtime.engine import engine\n"
    top, lazy = imports_of("compile.verify", source)
    assert (top.name, top.at_top) == ("torch", True)
    assert (lazy.name, lazy.at_top) == ("runtime.engine.engine", False)
    assert breaks_direction(lazy)
    assert not breaks_direction(
        Import("runtime.executors.cpu.lowering", "compile.program", 1, True)
    )


IMPORT_WITHOUT_HEAVY = """
import importlib, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HEAVY:
            raise ImportError(f"{name} is not installed here")
HEAVY = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Refuse())
for name in sys.argv[2:]:
    importlib.import_module(name)
assert not HEAVY & {name.split(".")[0] for name in sys.modules}
"""


def importable_without_heavy() -> list[str]:
    """Every module of the base install: all of ours but the ones that exist for an extra."""
    paths = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    names = map(module_name, paths)
    base = [name for name in names if not may_need_heavy(name) and "__main__" not in name]
    return ["quant", *base]


def test_every_base_module_imports_without_any_heavy_package() -> None:
    names = importable_without_heavy()
    assert {"runtime", "compile", "quant.format", "coldpress", "compile.verify"} <= set(names)
    command = [sys.executable, "-c", IMPORT_WITHOUT_HEAVY, ",".join(sorted(HEAVY)), *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_torch_executor_names_its_extra() -> None:
    program = (
        "import sys\nsys.modules['torch'] = None\n"
        "from quant.format.errors import MissingExtraError\n"
        "try:\n    import runtime.executors.torch\n"
        "except MissingExtraError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "pip install 'coldpress[quantize]'" in done.stdout, done.stderr
