"""The Task Scheduler (TS): senses nodes and links, acts in milliseconds inside the envelope."""
