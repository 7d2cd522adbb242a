"""Measurements against other tools. No part of the product imports this."""
