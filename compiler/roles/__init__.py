"""Roles of the parts of a graph, inferred from its structure alone: no names, no module paths."""
