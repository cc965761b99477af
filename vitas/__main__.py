"""python -m vitas: the command `vitas`."""

from vitas.cli import main

if __name__ == "__main__":
    main()
