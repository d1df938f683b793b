"""The use cases: classify images, embed images and texts, and the pipeline under both."""
