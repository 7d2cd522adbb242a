"""TensorRT engines, made ahead of time from the ONNX decoder step."""
