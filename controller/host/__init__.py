"""A host process: runs any set of roles, makes their records durable, carries their messages."""
