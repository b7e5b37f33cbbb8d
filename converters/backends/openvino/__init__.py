"""OpenVINO: IR in f32, bf16 or f16, and NNCF's int8."""
