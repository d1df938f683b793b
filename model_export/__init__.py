"""The offline half: trains CLIP models, exports them to bundles, verifies bundles. `service` never imports it."""
