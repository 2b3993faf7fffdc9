"""What is said on the wire: topics, messages, codec, QoAIS vocabulary, errors."""
