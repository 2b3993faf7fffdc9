"""The command line: a thin shell over the table of operations, the SDK and the parts themselves."""
