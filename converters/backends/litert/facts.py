"""What a build goes by."""

from converters.recipes.recipe import DELEGATE, ETHOS, Device, EngineFacts, LoadOptions, Recipe, Way

FACTS = EngineFacts(
    name="litert",
    recipes=(
        Recipe("litert/fp32", "litert", "fp32", "float", accelerators=(None, DELEGATE)),
        Recipe("litert/fp16", "litert", "fp16", "float", accelerators=(None, DELEGATE)),
        Recipe("litert/static-int8", "litert", "int8", "static", accelerators=(None, ETHOS, DELEGATE)),
        Recipe("litert/dynamic-int8", "litert", "int8", "dynamic"),
        Recipe("litert/weights-int8", "litert", "int8", "weights"),
        # A CPU has no fast kernels for 16-bit activations, and other engines offer it percentiles.
        Recipe("litert/static-int16x8", "litert", "int8", "static16", accelerators=(ETHOS,)),
        Recipe("litert/percentile-int8", "litert", "int8", "percentile", accelerators=(ETHOS,)),
    ),
    tools=("ai-edge-litert", "ai-edge-quantizer", "litert-torch", "torch", "onnx", "onnxslim"),
    suffix=".tflite",
    devices={
        DELEGATE: Device(
            LoadOptions(),
            {},
            "judged on LiteRT's CPU kernels: the delegate is the board's, and its self-test counts what it takes",
        )
    },
    ways=(Way({"delegate": "none"}), Way()),
    # 2.3.0 crashes under qemu 7.2; the last that runs there.
    emulated="ai-edge-litert>=2.1,<=2.1.2",
    reads=(".tflite",),
    loads_slowly=("fp32", "int8"),
    source="converters.source.tflite_source",
)
