"""What a choice costs: bytes from its store, damage from weights alone or from one pass over the user's text."""
