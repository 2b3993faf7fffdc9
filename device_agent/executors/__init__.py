"""Task executors behind one door, each in processes of its own."""
