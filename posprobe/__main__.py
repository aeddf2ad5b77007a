"""`python -m posprobe`: the command line."""

from posprobe.cli import main

if __name__ == "__main__":
    main(prog_name="python -m posprobe")
