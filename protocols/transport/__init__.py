"""The one MQTT session: what daemon, controller and SDK speak through."""
