"""Three services for driving under real arrivals, in five ways: what the right runtimes save."""
