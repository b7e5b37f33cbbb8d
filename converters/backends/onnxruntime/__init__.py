"""ONNX Runtime: the canonical model with its patterns, QDQ and dynamic int8."""
