"""The source as a graph: canonical ONNX, its patterns, and the importer that runs it in torch."""
