"""LiteRT: from torch or ONNX to `.tflite`, its quantizer, and Arm's Vela behind it."""
