"""What an architecture is: block specs, base models, architecture JSON, the graph of choices."""
