"""Names that the ONNX decoder step shares with whoever runs it; the contract is docs/ONNX.md.

Sizes: T tokens of the step, B sequences, Q queries of the longest of them, M pages of the longest
past, N pages of the pool, P tokens of a page, R rows that need logits.
"""

OPSET = 24
IR_VERSION = 10
"""What ONNX Runtime and the TensorRT parser both read; newer ones of the onnx package are not."""
CONTRACT = "coldpress.contract"
"""Key of the metadata that says which version of docs/ONNX.md a graph follows."""
CONTRACT_VERSION = "1"

INPUTS = "coldpress.inputs"
"""Key of the metadata that says whose inputs the graph rounds: JSON, from how, in the words of
`ActivationScheme`, to the names of the weights. Absent where it rounds none."""

GRAPH_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"

TOKEN_IDS = "token_ids"
POSITIONS = "positions"
QUERY_ROWS = "query_rows"
QUERY_LENGTHS = "query_lengths"
TOKEN_PLACES = "token_places"
PAST_LENGTHS = "past_lengths"
PAGE_TABLE = "page_table"
LOGIT_ROWS = "logit_rows"
LOGITS = "logits"

STEP_INPUTS: dict[str, tuple[str, ...]] = {
    TOKEN_IDS: ("T",),
    POSITIONS: ("T",),
    QUERY_ROWS: ("B", "Q"),
    QUERY_LENGTHS: ("B",),
    TOKEN_PLACES: ("T",),
    PAST_LENGTHS: ("B",),
    PAGE_TABLE: ("B", "M"),
    LOGIT_ROWS: ("R",),
}
"""The int64 inputs, with their shapes."""

SCALE_SUFFIX = ".scale"
ZERO_POINT_SUFFIX = ".zero_point"
ORDER_SUFFIX = ".order"
INPUT_SCALE_SUFFIX = ".input_scale"
LOOKED_UP_SUFFIX = ".looked_up"
"""Of a second name for a part's bytes, under which rows are looked up."""
PART_SUFFIXES = (SCALE_SUFFIX, ZERO_POINT_SUFFIX)
"""What the parts of a quantized weight are called after its own name."""


def pool_names(layer: int) -> tuple[str, str]:
    """Inputs [N, P, kv_heads, head_dim]: keys and values of a layer, only read; float32, or float16
    in the graph that TensorRT is given."""
    return f"pool_k.{layer}", f"pool_v.{layer}"


def new_names(layer: int) -> tuple[str, str]:
    """Outputs [T, kv_heads, head_dim]: what the caller writes into the pool, in its type."""
    return f"new_k.{layer}", f"new_v.{layer}"
