"""What serves MQTT to a cell: an embedded broker, an installed Mosquitto, or another one's."""
