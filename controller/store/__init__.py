"""What is durable: the newest state of every record, and a bounded log of its changes."""

from controller.store.door import Change, Expired, Fenced, OutOfOrder, Store
from controller.store.sqlite import SqliteStore

__all__ = ["Change", "Expired", "Fenced", "OutOfOrder", "SqliteStore", "Store"]
