"""Zero-shot evaluation of a bundle on labelled images, by the code that serves it and without torch."""
