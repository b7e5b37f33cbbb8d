"""Recipes, and the calibration that static quantization needs."""
