"""Samples for retraining: chosen by a worker, kept by the supervisor, brought to the fleet (docs/samples.md).

worker: `sampler` (by `choosing`, `classes`)  → a descriptor →  supervisor: `keeper` (`store`, `sending`)
"""
