"""From a trained model to bundles, one for each hardware profile."""

from edgekit import analytics

# Before any module in here imports an engine or a quantizer.
analytics.switch_off()
