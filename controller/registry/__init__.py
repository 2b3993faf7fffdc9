"""What people and programs read: the newest state of everything, and how it changed."""

from controller.registry.live import LiveRegistry
from controller.registry.model import Change, Expired, Registry

__all__ = ["Change", "Expired", "LiveRegistry", "Registry"]
