"""Ready is not the same as alive."""

import httpx

from tests.runtime.server.harness import ScriptedExecutor, running


def test_ready_ends_with_the_engine_and_with_draining() -> None:
    with running(ScriptedExecutor()) as server:
        assert httpx.get(f"{server.url}/ready", timeout=60).json() == {"status": "ok"}
        assert httpx.get(f"{server.url}/v2/health/ready", timeout=60).json()["ready"] is True
        state = server.server.app.state.server
        state.draining = True
        answer = httpx.get(f"{server.url}/ready", timeout=60)
        assert answer.status_code == 503 and "shutting down" in answer.json()["error"]["message"]
        assert answer.headers["retry-after"] == "1"
        assert httpx.get(f"{server.url}/v2/health/ready", timeout=60).status_code == 503
        state.draining = False
        server.thread.shutdown(1)
        assert (
            "not running" in httpx.get(f"{server.url}/ready", timeout=60).json()["error"]["message"]
        )
        assert httpx.get(f"{server.url}/v2/models/tiny/ready", timeout=60).status_code == 503
