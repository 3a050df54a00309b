"""The commands, one module each: what `cli` assembles. Each parses, calls and prints."""
