"""What is measured and shown of a run while it lasts."""
