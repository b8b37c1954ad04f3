"""The command line: thin entry points. What a command does is done by flows; here it is asked for and shown."""
