"""The paths below /api."""

from runtime.server.ollama import answering, catalogue, embedding
from runtime.server.routing import App


def add_routes(app: App) -> None:
    app.add_api_route("/api/generate", answering.generate, methods=["POST"])
    app.add_api_route("/api/chat", answering.chat, methods=["POST"])
    app.add_api_route("/api/embed", embedding.embed, methods=["POST"])
    app.add_api_route("/api/embeddings", embedding.embed_one, methods=["POST"])
    app.add_api_route("/api/tags", catalogue.list_models, methods=["GET", "HEAD"])
    app.add_api_route("/api/ps", catalogue.list_loaded, methods=["GET"])
    app.add_api_route("/api/show", catalogue.show_model, methods=["POST"])
    app.add_api_route("/api/version", catalogue.show_version, methods=["GET", "HEAD"])
