"""Answers requests of NVIDIA Triton's python backend, whose model.py subclasses `Answering`.

Triton imports the package `triton_python_backend_utils` into the processes that it starts; there is
none elsewhere. Requests are handed to the engine at once; one thread sends what it brings.
"""

import queue
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coldpress.loading import open_service
from quant.format.errors import ColdpressError
from runtime.engine.request import RequestError, SamplingParams
from runtime.generation import Generation, GenerationParams

if TYPE_CHECKING:
    from runtime.service import GenerationService


class Answer:
    """One request on its way: its generation, and where its responses go."""

    def __init__(self, generation: Generation, sender: Any, stream: bool) -> None:
        self.generation, self.sender, self.stream = generation, sender, stream
        self.text = ""


class Answering:
    """Inputs and outputs are those of `compile.to_triton.repository.text_model`.

    With `stream` each response holds the text that is new, without it there is one response. With
    `chat` the text is what a user says, otherwise it is continued. Greedy unless a temperature is
    given; without max_tokens an answer is as long as the context leaves.
    """

    artifact: Path

    def initialize(self, args: Mapping[str, str]) -> None:
        """Triton's first call. Raises what loading an artifact raises."""
        import triton_python_backend_utils as utils

        self._utils = utils
        self._service, self._close = self._open()
        self._news: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self._sending = threading.Thread(target=self._send_all, name="triton-responses")
        self._sending.start()

    def _open(self) -> "tuple[GenerationService, Any]":
        return open_service(self.artifact)

    def execute(self, requests: Sequence[Any]) -> None:
        """Triton's call for each batch; responses follow on their own."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._start(request, sender)
            except (RequestError, ColdpressError, UnicodeDecodeError) as error:
                self._fail(sender, str(error))

    def finalize(self) -> None:
        """Triton's last call: answers that are not finished are aborted."""
        self._close()
        self._news.put(None)
        self._sending.join()

    def _start(self, request: Any, sender: Any) -> None:
        text = self._texts(request, "text_input")[0]
        if self._value(request, "chat", False):
            prompt = self._service.encode_chat([{"role": "user", "content": text}])
        else:
            prompt = self._service.encode(text)
        generation = self._service.submit(prompt, self._params(request))
        answer = Answer(generation, sender, bool(self._value(request, "stream", False)))
        generation.on_news(lambda: self._news.put(answer))

    def _params(self, request: Any) -> GenerationParams:
        sampling = SamplingParams(
            temperature=float(self._value(request, "temperature", 0.0)),
            top_p=float(self._value(request, "top_p", 1.0)),
            seed=self._value(request, "seed", None),
        )
        return GenerationParams(
            max_tokens=self._value(request, "max_tokens", None),
            sampling=sampling,
            stop=tuple(self._texts(request, "stop")),
        )

    def _send_all(self) -> None:
        while (answer := self._news.get()) is not None:
            for delta in answer.generation.poll():
                answer.text += delta.text
                if delta.error is not None:
                    self._fail(answer.sender, delta.error)
                elif delta.finish_reason is not None:
                    self._send(answer, delta.finish_reason)
                elif answer.sender.is_cancelled():
                    answer.generation.cancel()
                elif answer.stream and answer.text:
                    self._send(answer, None)

    def _send(self, answer: Answer, finish_reason: str | None) -> None:
        utils = self._utils
        values = {"text_output": answer.text, "finish_reason": finish_reason or ""}
        tensors = [
            utils.Tensor(name, np.array([value.encode()], object)) for name, value in values.items()
        ]
        answer.text = ""
        final = utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if finish_reason else 0
        answer.sender.send(utils.InferenceResponse(output_tensors=tensors), flags=final)

    def _fail(self, sender: Any, problem: str) -> None:
        utils = self._utils
        response = utils.InferenceResponse(output_tensors=[], error=utils.TritonError(problem))
        sender.send(response, flags=utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _value(self, request: Any, name: str, default: Any) -> Any:
        tensor = self._utils.get_input_tensor_by_name(request, name)
        return default if tensor is None else tensor.as_numpy().reshape(-1)[0].item()

    def _texts(self, request: Any, name: str) -> list[str]:
        tensor = self._utils.get_input_tensor_by_name(request, name)
        return [] if tensor is None else [text.decode() for text in tensor.as_numpy().reshape(-1)]
