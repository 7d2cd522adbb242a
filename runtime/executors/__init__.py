"""Backends that run one step of a Program; none imports another."""
