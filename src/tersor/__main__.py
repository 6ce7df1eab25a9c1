"""`python -m tersor`."""

from tersor.cli import main

main()
