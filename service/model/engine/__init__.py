"""Sessions, providers and encoders of a bundle, and the errors of devices."""
