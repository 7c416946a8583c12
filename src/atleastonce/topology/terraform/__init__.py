"""Terraform: resources as JSON configuration, for a ``*.tf.json`` file. Providers are configured beside it, by whoever runs it."""

from atleastonce.topology.terraform.document import PROVIDERS, terraform

__all__ = ["PROVIDERS", "terraform"]
