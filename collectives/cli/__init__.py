"""The command line, `collectives`."""
