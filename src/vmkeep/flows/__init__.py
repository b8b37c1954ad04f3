"""Durable workflows: one file per verb. A flow reaches a machine only through the Host protocol."""
