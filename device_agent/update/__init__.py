"""Moving one deployment to another bundle: `transitions` decide, the `reconciler` and the modules beside it act."""
