"""``python -m service`` is ``anyclass``."""

from service.cli.commands import main

if __name__ == "__main__":
    main()
