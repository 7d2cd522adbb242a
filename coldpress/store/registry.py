"""Models in OCI registries: `oci://host/repository:tag`, over the distribution API, version 2.

A model is an image manifest of our artifact type whose layers are its files, each with its path as
title (OCI image specification 1.1, "Guidelines for Artifact Usage"). Nothing else is pulled.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

from coldpress.store.download import RemoteFile
from coldpress.store.fetch import HttpError, open_url, read_json
from coldpress.store.local import Entry, Store
from coldpress.store.pull import OnProgress, Remote
from quant.format.errors import InputError

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.coldpress.model.v1+json"
FILE_TYPE = "application/vnd.coldpress.file.v1"
TITLE = "org.opencontainers.image.title"
EMPTY = b"{}"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"

_REPOSITORY = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
_SOURCE = re.compile(
    rf"oci://([A-Za-z0-9.-]+(?::[0-9]+)?|\[[0-9a-f:]+\](?::[0-9]+)?)/({_REPOSITORY})"
    r"(?::([A-Za-z0-9_][A-Za-z0-9._-]{0,127})|@(sha256:[0-9a-f]{64}))?"
)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_LOCAL = ("127.0.0.1", "localhost", "::1")
_REALMS = {
    "docker.io": ("auth.docker.io",),
    "registry-1.docker.io": ("auth.docker.io",),
    "registry.gitlab.com": ("gitlab.com",),
}
"""Hosts that registries are known to leave tokens to; others get neither password nor request."""


@dataclass
class Registry:
    """One repository of a registry. `password` is "user:password", for basic authentication."""

    host: str
    repository: str
    reference: str
    plain_http: bool = False
    password: str | None = field(default=None, repr=False)
    _authorization: str | None = field(default=None, repr=False)

    @property
    def base(self) -> str:
        name = urlsplit(f"//{self.host}").hostname
        scheme = "http" if self.plain_http or name in _LOCAL else "https"
        return f"{scheme}://{self.host}/v2/{self.repository}"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Authorization": self._authorization} if self._authorization else {}

    def log_in(self, actions: str) -> None:
        """Get what the registry wants of those who `pull` or `push,pull`. InputError if it refuses,
        or sends its clients to a stranger for it."""
        try:
            open_url(f"{self.base.partition('/v2/')[0]}/v2/").close()
            return
        except HttpError as failure:
            challenge = failure.challenge
            if failure.status != 401 or not challenge:
                raise
        kind, _, rest = challenge.partition(" ")
        basic = self.password and base64.b64encode(self.password.encode()).decode()
        if kind.lower() == "basic":
            if not basic:
                raise InputError(
                    f"{self.host} wants a password; set COLDPRESS_REGISTRY_AUTH to USER:PASSWORD"
                )
            self._authorization = f"Basic {basic}"
            return
        if kind.lower() != "bearer":
            raise InputError(f"{self.host} wants '{kind[:50]}' authentication, which is not known")
        terms = dict(_CHALLENGE.findall(rest))
        realm = self._checked_realm(terms.get("realm", ""))
        scope = f"repository:{self.repository}:{actions}"
        query = urlencode({"service": terms.get("service", ""), "scope": scope})
        answer, _, _ = read_json(
            f"{realm}{'&' if '?' in realm else '?'}{query}",
            {"Authorization": f"Basic {basic}"} if basic else {},
        )
        token = answer.get("token") or answer.get("access_token") if type(answer) is dict else None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise InputError(f"{realm}: the answer holds no token")
        self._authorization = f"Bearer {token}"

    def _checked_realm(self, realm: str) -> str:
        """The token server's address; the registry itself, or one that it is known to use."""
        parts = urlsplit(realm)
        own = urlsplit(self.base)
        known = _REALMS.get(self.host, ())
        same = parts.scheme == own.scheme and parts.netloc == own.netloc
        if not same and not (parts.scheme == "https" and parts.netloc in known):
            raise InputError(
                f"{self.host} sends its clients to '{realm[:200]}' for a token, which is another "
                "host; refused, since it would learn the password"
            )
        return realm


def parse_registry_source(text: str, plain_http: bool = False) -> Registry:
    """InputError unless it is `oci://host/repository[:tag|@sha256:digest]`."""
    match = _SOURCE.fullmatch(text)
    if match is None:
        raise InputError(f"'{text[:200]}' is not of the form oci://host/repository:tag")
    reference = match[4] or match[3] or "latest"
    password = os.environ.get("COLDPRESS_REGISTRY_AUTH")
    return Registry(match[1], match[2], reference, plain_http, password)


def find_in_registry(text: str, plain_http: bool = False) -> Remote:
    """What a model in a registry consists of. InputError for anything but a model of ours."""
    registry = parse_registry_source(text, plain_http)
    registry.log_in("pull")
    url = f"{registry.base}/manifests/{registry.reference}"
    fields, raw, _ = read_json(url, {**registry.headers, "Accept": MANIFEST_TYPE})
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    if registry.reference.startswith("sha256:") and digest != registry.reference:
        raise InputError(f"{text}: the manifest is not the one asked for (its digest differs)")
    if not isinstance(fields, dict) or fields.get("artifactType") != ARTIFACT_TYPE:
        kind = fields.get("artifactType") if isinstance(fields, dict) else None
        raise InputError(f"{text}: is no coldpress model (its type is {kind!r}); push one first")
    layers = fields.get("layers")
    if not isinstance(layers, list):
        raise InputError(f"{text}: the manifest lists no files")
    files = [_file(registry, text, layer) for layer in layers]
    return Remote(
        f"oci://{registry.host}/{registry.repository}@{digest}",
        registry.repository.rpartition("/")[2],
        files,
    )


def _file(registry: Registry, text: str, layer: Any) -> RemoteFile:
    try:
        path, size = layer["annotations"][TITLE], layer["size"]
        match = _DIGEST.fullmatch(layer["digest"])
        media_type = layer["mediaType"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{text}: a file of the manifest has no name, size or digest") from error
    if media_type != FILE_TYPE:
        raise InputError(f"{text}: holds '{str(media_type)[:100]}', which is no file of a model")
    if match is None or not isinstance(path, str):
        raise InputError(f"{text}: a file of the manifest is not named by its SHA-256; refused")
    url = f"{registry.base}/blobs/{layer['digest']}"
    return RemoteFile(path, size, url, sha256=match[1], headers=registry.headers)


def push(
    store: Store,
    entry: Entry,
    target: str,
    *,
    plain_http: bool = False,
    on_progress: OnProgress | None = None,
) -> str:
    """Put a model of the store into a registry; returns its address by digest. Files that are there
    already are not sent again."""
    registry = parse_registry_source(target, plain_http)
    if registry.reference.startswith("sha256:"):
        raise InputError(f"{target}: a digest cannot be chosen; push to a tag")
    registry.log_in("pull,push")
    done = 0
    _upload(registry, EMPTY, hashlib.sha256(EMPTY).hexdigest(), len(EMPTY))
    for file in entry.files:
        _upload(registry, store.blob(file.sha256), file.sha256, file.bytes)
        done += file.bytes
        if on_progress is not None:
            on_progress(done, entry.bytes, file.path)
    raw = manifest_of(entry)
    url = f"{registry.base}/manifests/{registry.reference}"
    headers = {**registry.headers, "Content-Type": MANIFEST_TYPE}
    open_url(url, headers, method="PUT", data=raw).close()
    digest = hashlib.sha256(raw).hexdigest()
    return f"oci://{registry.host}/{registry.repository}@sha256:{digest}"


def manifest_of(entry: Entry) -> bytes:
    """The image manifest of a model; the same bytes for the same files."""
    layers = [
        {
            "mediaType": FILE_TYPE,
            "digest": f"sha256:{file.sha256}",
            "size": file.bytes,
            "annotations": {TITLE: file.path},
        }
        for file in sorted(entry.files, key=lambda file: file.path)
    ]
    config = {
        "mediaType": EMPTY_TYPE,
        "digest": f"sha256:{hashlib.sha256(EMPTY).hexdigest()}",
        "size": len(EMPTY),
    }
    fields = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": config,
        "layers": layers,
    }
    return json.dumps(fields, indent=1).encode()


def _upload(registry: Registry, content: Path | bytes, sha256: str, size: int) -> None:
    digest = f"sha256:{sha256}"
    try:
        open_url(f"{registry.base}/blobs/{digest}", registry.headers, method="HEAD").close()
        return
    except HttpError as failure:
        if failure.status != 404:
            raise
    with open_url(
        f"{registry.base}/blobs/uploads/", registry.headers, method="POST", data=b""
    ) as response:
        place = urljoin(f"{registry.base}/blobs/uploads/", response.headers.get("Location", ""))
    own = urlsplit(place).netloc == urlsplit(registry.base).netloc
    headers = {
        **(registry.headers if own else {}),
        "Content-Type": "application/octet-stream",
        "Content-Length": str(size),
    }
    url = f"{place}{'&' if '?' in place else '?'}{urlencode({'digest': digest})}"
    if isinstance(content, bytes):
        open_url(url, headers, method="PUT", data=content).close()
        return
    with content.open("rb") as file:
        open_url(url, headers, method="PUT", data=file).close()
