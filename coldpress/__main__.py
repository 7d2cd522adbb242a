"""`python -m coldpress` is the same program as `coldpress`."""

from coldpress.cli import main

main()
