"""KServe's Open Inference Protocol, version 2: health, metadata and the generate extension."""

from runtime.server.kserve.routes import add_routes

__all__ = ["add_routes"]
