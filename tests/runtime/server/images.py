"""Requests that would have a server fetch something."""

from typing import Any

IMAGES = (
    "http://198.51.100.7/a.png",
    "https://coldpress.invalid/a.png",
    "file:///etc/passwd",
    "data:image/png;base64,AAAA",
    "/etc/passwd",
)


def image_requests(url: str) -> list[tuple[str, dict[str, Any], str | None]]:
    """Routes, bodies, and the field that a refusal names; None for what is plain text with an
    address in it, which stays text."""
    image = {"type": "image_url", "image_url": {"url": url}}
    chats = [{"role": "user", "content": [image]}]
    items = [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]
    text = [{"role": "user", "content": f"See ![this]({url}) and {url}"}]
    return [
        ("/v1/chat/completions", {"messages": chats}, "messages"),
        ("/v1/responses", {"input": items}, "input"),
        ("/v1/chat/completions", {"messages": text, "max_tokens": 2}, None),
    ]
