"""The command line: every command is a library function whose model and data are given by name."""
