"""Moving one deployment to another bundle: `machine` decides, `runner` and the modules beside it act."""
