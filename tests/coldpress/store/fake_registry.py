"""An OCI registry in memory: the distribution API, version 2, as far as models need it."""

import hashlib
import json
import re
from dataclasses import dataclass, field

from tests.coldpress.store.http_server import Answer, Asked, Reply, ranged


@dataclass
class FakeRegistry:
    """password: what the token server wants, as "user:password" in base64; None for an open one.
    realm: where clients are sent for a token; the registry's own by default."""

    password: str | None = None
    realm: str | None = None
    url: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)

    @property
    def answer(self) -> Answer:
        return self._answer

    def _answer(self, asked: Asked) -> Reply:
        path = asked.path.partition("?")[0]
        if path == "/token":
            if asked.headers.get("authorization") != f"Basic {self.password}":
                return Reply(401, b'{"errors": [{"code": "UNAUTHORIZED", "message": "wrong"}]}')
            return Reply(200, b'{"token": "t0ken"}')
        if self.password and asked.headers.get("authorization") != "Bearer t0ken":
            realm = self.realm or f"{self.url}/token"
            challenge = f'Bearer realm="{realm}",service="fake",scope="x"'
            return Reply(401, headers={"WWW-Authenticate": challenge})
        if path == "/v2/":
            return Reply(200, b"{}")
        if match := re.fullmatch(r"/v2/(.+)/manifests/(.+)", path):
            return self._manifest(match[2], asked)
        if re.fullmatch(r"/v2/(.+)/blobs/uploads/", path):
            return Reply(202, headers={"Location": f"{path}1"})
        if re.fullmatch(r"/v2/(.+)/blobs/uploads/1", path):
            digest = f"sha256:{hashlib.sha256(asked.body).hexdigest()}"
            assert asked.path.endswith(f"digest={digest.replace(':', '%3A')}")
            self.blobs[digest] = asked.body
            return Reply(201)
        if match := re.fullmatch(r"/v2/(.+)/blobs/(.+)", path):
            found = self.blobs.get(match[2])
            return Reply(404) if found is None else ranged(found, asked)
        return Reply(404)

    def _manifest(self, reference: str, asked: Asked) -> Reply:
        if asked.method == "PUT":
            for layer in json.loads(asked.body)["layers"]:
                assert len(self.blobs[layer["digest"]]) == layer["size"]
            digest = f"sha256:{hashlib.sha256(asked.body).hexdigest()}"
            self.manifests[reference] = self.manifests[digest] = asked.body
            return Reply(201)
        found = self.manifests.get(reference)
        error = b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "not known\\n here"}]}'
        return Reply(404, error) if found is None else Reply(200, found)
