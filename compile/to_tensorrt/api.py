"""`tensorrt_rtx`, which builds for other GPUs on a machine without one, and `tensorrt`, which
builds for the GPU that is there: the one module that needs either to build."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from compile.engine_file import Builder
from quant.format.errors import MissingExtraError, UnsupportedModelError

Sizes = tuple[int, int, int]
"""Least, usual, largest."""
Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
NO_KERNEL = "not supported by a dedicated kernel"
WORKSPACE = 1 << 30


class BuildApi:
    """One version of one of the packages.

    here: build for the GPU of this machine, with `tensorrt`. Raises MissingExtraError.
    """

    def __init__(self, here: bool) -> None:
        self.name: Builder = "tensorrt" if here else "tensorrt_rtx"
        self._trt = load_package(self.name)
        self.version: str = self._trt.__version__
        self._logger = error_keeper(self._trt)

    def parse(self, graph: Path) -> "Network":
        """The network of an ONNX file, strongly typed: nothing is computed in other types than the
        graph says. Raises UnsupportedModelError naming the node that the parser does not take."""
        trt, builder = self._trt, self._trt.Builder(self._logger)
        flags = trt.NetworkDefinitionCreationFlag
        typed = getattr(flags, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if typed is None else 1 << int(typed))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse_from_file(str(graph)):
            problem = parser.get_error(0)
            raise UnsupportedModelError(
                f"{self.name} {self.version} does not read the graph: "
                f"{_one_line(problem.desc())} (node {problem.node_name()})"
            )
        # The parser owns the weights that the network points at.
        return Network(trt, builder, network, parser)

    def build(self, network: "Network", shapes: Shapes, cards: Sequence[str], engine: Path) -> None:
        """Write the engine. Raises UnsupportedModelError with the builder's own words."""
        trt = self._trt
        config = network.builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
        if self.name == "tensorrt_rtx":
            config.num_compute_capabilities = len(cards)
            for index, card in enumerate(cards):
                config.set_compute_capability(getattr(trt.ComputeCapability, card.upper()), index)
        profile = network.builder.create_optimization_profile()
        for name, (least, usual, largest) in shapes.items():
            profile.set_shape(name, least, usual, largest)
        config.add_optimization_profile(profile)
        self._logger.problems.clear()
        memory = network.builder.build_serialized_network(network.network, config)
        if memory is None:
            said = self._logger.first() or "it says nothing"
            raise UnsupportedModelError(f"{self.name} {self.version} builds no engine: {said}")
        with engine.open("xb") as file:
            file.write(memory)


class Network:
    """A parsed network, and what is asked about it."""

    def __init__(self, trt: ModuleType, builder: Any, network: Any, parser: Any) -> None:
        self._trt, self.builder, self.network, self._parser = trt, builder, network, parser
        self._layers = [network.get_layer(index) for index in range(network.num_layers)]

    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Shape of each input; -1 where it is free."""
        found = [self.network.get_input(index) for index in range(self.network.num_inputs)]
        return {tensor.name: tuple(tensor.shape) for tensor in found}

    def values_used_as_shapes(self) -> list[str]:
        """Inputs whose numbers decide the shape of something: TensorRT reads those on the host."""
        found = [self.network.get_input(index) for index in range(self.network.num_inputs)]
        return [tensor.name for tensor in found if tensor.is_shape_tensor]

    def outputs(self) -> list[str]:
        return [self.network.get_output(i).name for i in range(self.network.num_outputs)]

    def consumed(self) -> set[str]:
        """Names of all tensors that some layer reads."""
        return {
            tensor.name
            for layer in self._layers
            for index in range(layer.num_inputs)
            for tensor in [layer.get_input(index)]
            if tensor is not None
        }

    def attentions(self) -> list[Any]:
        """Every IAttention; python is given plain layers, which say of what class they are."""
        found = []
        for layer in self._layers:
            if layer.type == self._trt.LayerType.ATTENTION_OUTPUT:
                layer.__class__ = self._trt.IAttentionOutputLayer
                found.append(layer.attention)
        return found


def load_package(name: Builder) -> ModuleType:
    """The package. Raises MissingExtraError naming the extra that brings it."""
    try:
        if name == "tensorrt":
            import tensorrt

            return tensorrt  # type: ignore[no-any-return]
        import tensorrt_rtx
    except ImportError as error:
        extra = "tensorrt-full" if name == "tensorrt" else "tensorrt"
        package = "tensorrt" if name == "tensorrt" else "tensorrt-rtx-cu13"
        raise MissingExtraError("this TensorRT target", package, extra) from error
    return tensorrt_rtx  # type: ignore[no-any-return]


def error_keeper(trt: ModuleType) -> Any:
    """A logger whose `first()` is the first error since `problems` was cleared, None without."""

    class Problems(trt.ILogger):  # type: ignore[name-defined, misc]
        """Keeps errors, which are raised, and lets the rest go."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.problems: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.problems.append(message)

        def first(self) -> str | None:
            return _one_line(self.problems[0]) if self.problems else None

    return Problems()


def _one_line(text: str) -> str:
    return " ".join(text.split())
