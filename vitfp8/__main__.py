"""``python -m vitfp8`` is the command line."""

from vitfp8.cli import main

if __name__ == "__main__":
    main()
