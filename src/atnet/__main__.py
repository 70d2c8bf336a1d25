"""`python -m atnet` is `atnet`."""

from atnet.cli import main

if __name__ == "__main__":
    main()
