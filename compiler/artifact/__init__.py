"""Saving and loading compiled models: JSON and safetensors, nothing that can execute."""
