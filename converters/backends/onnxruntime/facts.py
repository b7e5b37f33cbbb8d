"""What a build goes by."""

from converters.recipes.recipe import EngineFacts, LoadOptions, Recipe, Way

FACTS = EngineFacts(
    name="onnxruntime",
    recipes=(
        Recipe("onnxruntime/fp32", "onnxruntime", "fp32", "float"),
        Recipe("onnxruntime/static-int8", "onnxruntime", "int8", "static"),
        Recipe("onnxruntime/percentile-int8", "onnxruntime", "int8", "percentile"),
        Recipe("onnxruntime/dynamic-int8", "onnxruntime", "int8", "dynamic"),
    ),
    tools=("onnx", "onnxruntime", "onnxslim"),
    suffix=".onnx",
    takes_as_is=(".onnx",),
    options=LoadOptions({"graph_optimization_level": "all"}),
    # Its threads wait for the next operator by spinning, also between calls.
    beside={"session.intra_op.allow_spinning": "0"},
    # Its Arm kernels multiply signed by signed, its x86 ones unsigned by signed.
    signed_activations=("aarch64",),
    ways=(
        Way({"graph_optimization_level": "disabled"}),
        Way({"graph_optimization_level": "basic"}),
    ),
    # 1.32 crashes under qemu 7.2; the last that runs there.
    emulated="onnxruntime>=1.22,<1.28",
)
