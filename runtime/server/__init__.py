"""HTTP: schemas, routes, server-sent events, limits and metrics."""
