"""``python -m model_export``, as torchrun starts it."""

from model_export.cli import main

if __name__ == "__main__":  # a worker that loads training data imports this file again
    main()
