"""A decoder step in standard ONNX operations, its weights beside it."""
