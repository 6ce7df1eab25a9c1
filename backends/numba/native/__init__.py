"""Runs a lowered graph as one native call: steps over planned buffers, with no framework in between."""
