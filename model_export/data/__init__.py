"""Image-text pairs in: reading, batching, captions, augmentation."""
