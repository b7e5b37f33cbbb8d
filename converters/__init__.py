"""From a trained model to bundles, one for each hardware profile."""
