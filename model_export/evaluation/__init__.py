"""Zero-shot evaluation of a bundle on labelled images, with the code that serves and without torch."""
