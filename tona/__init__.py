"""What a person or an application holds: the SDK and the command line."""
