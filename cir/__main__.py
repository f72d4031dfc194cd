"""Run the command line as `python -m cir`."""

from cir.cli import main

main()
