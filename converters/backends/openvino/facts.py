"""What a build goes by."""

from converters.recipes.recipe import BF16, NPU, Device, EngineFacts, LoadOptions, Recipe, Way

FACTS = EngineFacts(
    name="openvino",
    recipes=(
        Recipe("openvino/f32", "openvino", "fp32", "float"),
        Recipe("openvino/bf16", "openvino", "bf16", "float", isa=BF16),
        Recipe("openvino/fp16", "openvino", "fp16", "float", accelerators=(NPU,)),
        Recipe("openvino/static-int8", "openvino", "int8", "static", accelerators=(None, NPU)),
        # bf16 for what static int8 leaves gains nothing: on PP-OCRv6's recogniser, detector and orientation classifier
        # 1.00 to 1.07 x the time with an f32 remainder (Zen 5, openvino 2026.4), and the recogniser loses more.
        # Held to AVX2 by ONEDNN_MAX_CPU_ISA, openvino 2026.4 loads no linear layer with such weights ("could not create a
        # primitive descriptor").
        Recipe("openvino/weights-int8", "openvino", "int8", "weights", isa=("avx512",)),
        Recipe("openvino/weights-int8-bf16", "openvino", "int8", "weights", isa=BF16, remainder="bf16"),
        # Of a source that is quantized already: its Q/DQ pairs and integers, read by OpenVINO itself.
        Recipe("openvino/kept-int8", "openvino", "int8", "kept", accelerators=(None, NPU)),
    ),
    tools=("openvino", "nncf", "onnx", "onnxslim"),
    suffix=".xml",
    # On a CPU with bf16 or AMX it computes float models in bf16 unless told.
    options=LoadOptions({"INFERENCE_PRECISION_HINT": "f32"}, {"bf16": {"INFERENCE_PRECISION_HINT": "bf16"}}),
    # Pinned, the threads of two processes share one core while the other idles.
    beside={"ENABLE_CPU_PINNING": False},
    devices={
        NPU: Device(
            LoadOptions({"device": "NPU"}, {"fp16": {"INFERENCE_PRECISION_HINT": "f16"}}),
            {"device": "CPU", "INFERENCE_PRECISION_HINT": "f32"},
            "judged on OpenVINO's CPU device: there is no NPU here, and no blob was compiled for one",
        )
    },
    ways=(Way(environment={"ONEDNN_MAX_CPU_ISA": "AVX2"}), Way()),
    # 2026.4.1 runs under qemu 7.2.
    emulated="openvino>=2026.4,<2027",
    reads=(".tflite",),
    # NNCF.
    loads_slowly=("int8",),
    source="converters.source.ir_source",
)
