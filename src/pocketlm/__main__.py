"""python -m pocketlm is the command `pocketlm`."""

from pocketlm.cli import main

main()
