"""The commands: parse, call the operation, print its report."""
