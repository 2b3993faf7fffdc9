"""No test of properties is timed: how long an example takes says how busy the machine is."""

from hypothesis import settings

settings.register_profile("unhurried", settings.default, deadline=None)
settings.load_profile("unhurried")
