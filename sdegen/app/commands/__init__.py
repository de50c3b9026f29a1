"""One command a file: `arguments(parser)` says what it takes, `run(args)` does it and gives what it found."""
