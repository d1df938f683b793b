"""The offline half: trains CLIP models, exports them to bundles and verifies bundles. `service` never imports it."""
