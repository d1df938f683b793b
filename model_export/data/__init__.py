"""Training data: reading, batching, captions, augmentation."""
