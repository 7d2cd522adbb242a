"""What is known of the request that is being answered, for limits, logs and traces; no prompt."""

import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field
from uuid import uuid4

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.generation import Generation, GenerationParams
from runtime.server.errors import error_response, internal_error
from runtime.server.keys import ApiKey

_HEADER = "x-request-id"
_FIT = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
"""What is repeated of a client's own id: no line breaks, nothing long."""


@dataclass(eq=False)
class RequestRecord:
    """One HTTP request. request_id: the client's own where it is fit to be repeated. key: None
    where the server has none. generations: all answers that were started for it."""

    request_id: str
    key: ApiKey | None = None
    started: float = field(default_factory=time.monotonic)
    generations: list[Generation] = field(default_factory=list)
    params: GenerationParams | None = None
    """What was asked of the first of them."""
    choices: int = 1
    """Answers to each prompt."""
    status: int = 0
    """Of the response; 0 as long as there is none."""
    priority: int | None = None
    """Of all its answers, whatever its body asks for."""

    @property
    def prompt_tokens(self) -> int:
        """Each prompt counted once."""
        return sum(each.num_prompt_tokens for each in self.generations[:: self.choices])

    @property
    def answer_tokens(self) -> int:
        return sum(each.num_answer_tokens for each in self.generations)


_current: ContextVar[RequestRecord | None] = ContextVar("request_record", default=None)


def current_record() -> RequestRecord | None:
    """That of the request which this task or thread works for."""
    return _current.get()


def note_generations(generations: Sequence[Generation], params: Sequence[GenerationParams]) -> None:
    """These answers belong to the request in progress. `params`: of the answers to each prompt."""
    record = _current.get()
    if record is not None:
        record.generations += generations
        record.choices, record.params = len(params), params[0]


def begin_copy(priority: int) -> None:
    """From here on this task works for a copy of its request: of the same key, in books of its
    own."""
    original = _current.get()
    assert original is not None, "a copy has an original"
    _current.set(RequestRecord(original.request_id, original.key, priority=priority))


def priority_of(asked: int | None) -> int:
    """What holds for the request in progress that asks for `asked`."""
    record = _current.get()
    forced = None if record is None else record.priority
    return (asked or 0) if forced is None else forced


def salted(salt: str | None) -> str:
    """The salt of the prefix cache: keys share no pages, whatever their clients ask for."""
    record = _current.get()
    owner = "" if record is None or record.key is None else record.key.name
    return f"{owner}\0{salt or ''}" if owner else salt or ""


Observer = Callable[[Scope, RequestRecord], AbstractContextManager[object]]
"""Entered before a request is answered, and left once it was, however that ended."""


class ObserveRequests:
    """Every request gets a record, and every response says its id. Observers see both, the first
    one outermost; none has to look at a response's messages itself."""

    def __init__(self, app: ASGIApp, observers: Sequence[Observer]) -> None:
        self._app = app
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(_HEADER.encode(), b"")
        own = given.decode() if _FIT.fullmatch(given) else uuid4().hex
        record = RequestRecord(own)
        _current.set(record)

        async def observed_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)[_HEADER] = own
            await send(message)

        with ExitStack() as observing:
            for observer in self._observers:
                observing.enter_context(observer(scope, record))
            try:
                await self._app(scope, receive, observed_send)
            except Exception:
                # Answered here, where the answer gets its id; whoever runs the app logs the rest.
                if not record.status:
                    answer = error_response(internal_error(), scope["path"])
                    await answer(scope, receive, observed_send)
                raise
