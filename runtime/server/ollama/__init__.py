"""Ollama's native interface: newline-delimited JSON below /api."""

from runtime.server.ollama.routes import add_routes

__all__ = ["add_routes"]
