"""``python -m service`` is ``anyclass``."""

from service.cli import main

if __name__ == "__main__":
    main()
