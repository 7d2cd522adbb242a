"""The paths below /v2. A model has one version, called 1."""

from runtime.server.kserve import generate, metadata
from runtime.server.routing import App


def add_routes(app: App) -> None:
    app.add_api_route("/v2", metadata.show_server, methods=["GET"])
    app.add_api_route("/v2/health/live", metadata.show_live, methods=["GET"])
    app.add_api_route("/v2/health/ready", metadata.show_ready, methods=["GET"])
    # Names of models may hold a slash, so that the longer paths come first.
    for model in ("/v2/models/{model:path}/versions/{version}", "/v2/models/{model:path}"):
        app.add_api_route(f"{model}/ready", metadata.show_model_ready, methods=["GET"])
        app.add_api_route(f"{model}/generate", generate.generate, methods=["POST"])
        app.add_api_route(f"{model}/generate_stream", generate.generate_stream, methods=["POST"])
    for model in ("/v2/models/{model:path}/versions/{version}", "/v2/models/{model:path}"):
        app.add_api_route(model, metadata.show_model, methods=["GET"])
