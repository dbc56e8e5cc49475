"""The API's side of the engine: starts its process, submits requests, hands out their tokens.

    client = await EngineClient.start(EngineConfig())
    async with await client.submit(Submit("r1", token_ids, Sampling(max_tokens=16))) as generation:
        async for outputs in generation:
            ...

Importing this module never imports torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType

import msgspec

from engine.config import ConfigError, EngineConfig
from engine.hub import resolve_model
from engine.messages import (
    Abort,
    Accepted,
    Failed,
    FromEngine,
    Output,
    Outputs,
    Profile,
    Profiled,
    Ready,
    Refused,
    Shutdown,
    Snapshot,
    Steps,
    Stop,
    Submit,
    ToEngine,
    TurnEnded,
)
from engine.model_config import CheckpointError, GenerationDefaults
from engine.wire import HEADER_BYTES, frame, payload_bytes

__all__ = [
    "CheckpointError",
    "ConfigError",
    "EngineClient",
    "EngineConfig",
    "EngineDead",
    "EngineRefused",
    "Generation",
    "GenerationDefaults",
    "resolve_model",
]


EXIT_GRACE_S = 10.0
"""How long a process whose socket has closed may take to end by itself."""


class EngineDead(Exception):
    """The engine process is gone; the message says why as far as it is known."""


class EngineRefused(Exception):
    """The engine did not take a request."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.message)
        self.status = refused.status
        self.code = refused.code
        self.message = refused.message
        self.param = refused.param
        self.retry_after = refused.retry_after


class Generation:
    """The running answer to one request: an async iterator over news, merged while unread.

    Use it as a context manager: leaving before every choice has ended aborts the request.
    """

    def __init__(self, client: EngineClient, submit: Submit) -> None:
        self.id = submit.id
        self.cached_tokens = 0
        self._client = client
        self._unfinished = submit.n
        self._news: list[Output] = []
        self._wake = asyncio.Event()
        self._accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.forget(self)

    async def __aiter__(self) -> AsyncIterator[list[Output]]:
        while self._unfinished or self._news:
            if not self._news:
                if self._client.death is not None:
                    raise EngineDead(self._client.death)
                self._wake.clear()
                await self._wake.wait()
                continue
            news, self._news = self._news, []
            self._unfinished -= sum(1 for output in news if output.finish)
            yield news

    @property
    def finished(self) -> bool:
        """Whether every choice's terminal event was read."""
        return not self._unfinished and not self._news

    def take(self, output: Output) -> None:
        """Adds news; an unread Output of the same choice absorbs it, so memory stays bounded."""
        if output.choice == 0 and "cached_tokens" in output.extras:
            self.cached_tokens = int(output.extras["cached_tokens"])
        for i, waiting in enumerate(self._news):
            if waiting.choice == output.choice:
                self._news[i] = _merge(waiting, output)
                break
        else:
            self._news.append(output)
        self._wake.set()

    def accept(self, message: Accepted) -> None:
        self.cached_tokens = message.cached_tokens
        self._resolve(None)

    def fail(self, error: Exception) -> None:
        """The engine refused the request or died."""
        self._resolve(error)
        self._wake.set()

    def _resolve(self, error: Exception | None) -> None:
        if self._accepted.done():
            return
        if error is None:
            self._accepted.set_result(None)
        else:
            self._accepted.set_exception(error)

    async def accepted(self) -> None:
        """Waits for the engine's word; raises EngineRefused or EngineDead."""
        await self._accepted


class EngineClient:
    """One engine process and the socket to it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.process = process
        self.ready: Ready
        self.snapshot: Snapshot | None = None
        self.heard_s = 0.0
        """When the snapshot came, by the event loop's clock."""
        self.death: str | None = None
        """Why the engine is gone; None while it lives."""
        self.on_steps: Callable[[Steps], None] = _ignore
        """Is told of the steps that ran; must not raise."""
        self._reader, self._writer = reader, writer
        self._encoder = msgspec.msgpack.Encoder()
        self._generations: dict[str, Generation] = {}
        self._listener: asyncio.Task[None] | None = None
        self._silence_limit_s: float | None = None
        self._profile: asyncio.Future[Profiled] | None = None

    @classmethod
    async def start(cls, config: EngineConfig) -> EngineClient:
        """Returns a client whose engine has loaded its model; raises EngineDead if it cannot."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # a folder named engine in the working directory must not be taken for ours
                "-m",
                "engine",
                "--socket-fd",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": _PACKAGES},
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        client = cls(process, reader, writer)
        try:
            writer.write(frame(msgspec.json.encode(config)))
            first = await client._receive()
            if not isinstance(first, Ready):
                raise EngineDead(await client._cause(first))
        except BaseException:
            await client.close()
            raise
        client.ready = first
        client._silence_limit_s = config.silence_limit_s
        client._listener = asyncio.create_task(client._listen(), name="engine listener")
        return client

    @property
    def alive(self) -> bool:
        return self.death is None

    async def submit(self, submit: Submit) -> Generation:
        """Returns the running generation once the engine has accepted it.

        Raises EngineRefused with an HTTP status, EngineDead, or ValueError for an id in use.
        """
        if self.death is not None:
            raise EngineDead(self.death)
        if submit.id in self._generations:
            raise ValueError(f"request id {submit.id!r} is in use")
        generation = Generation(self, submit)
        self._generations[submit.id] = generation
        try:
            self._send(submit)
            await generation.accepted()
        except BaseException:
            # Cancelled while waiting: the engine may accept it any moment.
            self.forget(generation)
            raise
        return generation

    def stop(self, request_id: str, choice: int, at_token: int) -> None:
        """Ends one choice at its `at_token`-th token; its terminal event says "stop"."""
        self._send(Stop(request_id, choice, at_token))

    def abort(self, request_id: str) -> None:
        """Ends every choice of a request; unknown and finished ones are ignored."""
        self._send(Abort(request_id))

    def turn_ended(self, message: TurnEnded) -> None:
        self._send(message)

    async def profile(self, steps: int, file: str) -> Profiled:
        """Returns once the engine has profiled its next `steps` steps into `file`, or cannot.

        Raises EngineDead, and ValueError while another profile is taken.
        """
        if self.death is not None:
            raise EngineDead(self.death)
        if self._profile is not None and not self._profile.done():
            raise ValueError("a profile is being taken")
        self._profile = asyncio.get_running_loop().create_future()
        self._send(Profile(steps, file))
        return await asyncio.shield(self._profile)

    def forget(self, generation: Generation) -> None:
        """Drops a generation; aborts it unless it has finished."""
        if self._generations.pop(generation.id, None) and not generation.finished:
            self.abort(generation.id)

    async def close(self) -> None:
        """Ends the engine process; open generations raise EngineDead."""
        self._send(Shutdown())
        self._die("the engine was shut down")
        if self._listener is not None:
            self._listener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listener
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        await self._exit_status()

    def _send(self, message: ToEngine) -> None:
        if self.death is None and not self._writer.is_closing():
            self._writer.write(frame(self._encoder.encode(message)))

    async def _receive(self) -> FromEngine | None:
        try:
            size = payload_bytes(await self._reader.readexactly(HEADER_BYTES))
            return _DECODER.decode(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def _hear(self) -> FromEngine | None:
        """The next message; raises TimeoutError after the longest silence allowed."""
        return await asyncio.wait_for(self._receive(), timeout=self._silence_limit_s)

    async def _listen(self) -> None:
        try:
            why = await self._dispatch()
        except TimeoutError:
            self.process.kill()
            why = f"the engine was silent for {self._silence_limit_s:g} seconds"
        except (ValueError, msgspec.DecodeError) as error:
            self.process.kill()
            why = f"the engine sent a broken message: {error}"
        self._die(why)

    async def _dispatch(self) -> str:
        """Hands messages to their generations until the socket closes; returns why it did."""
        failed: FromEngine | None = None
        while (message := await self._hear()) is not None:
            match message:
                case Outputs(outputs=outputs):
                    for output in outputs:
                        if generation := self._generations.get(output.id):
                            generation.take(output)
                case Accepted(id=request_id):
                    if generation := self._generations.get(request_id):
                        generation.accept(message)
                case Refused(id=request_id):
                    if generation := self._generations.pop(request_id, None):
                        generation.fail(EngineRefused(message))
                case Snapshot():
                    self.snapshot = message
                    self.heard_s = asyncio.get_running_loop().time()
                case Steps():
                    self.on_steps(message)
                case Profiled():
                    if self._profile is not None and not self._profile.done():
                        self._profile.set_result(message)
                case Failed():
                    failed = message
                case Ready():
                    pass  # sent once, read by start()
        return await self._cause(failed)

    async def _cause(self, last: FromEngine | None) -> str:
        """Why the socket closed: the engine's last words, else its exit status."""
        if isinstance(last, Failed):
            return last.message
        return f"the engine process ended with status {await self._exit_status()}"

    async def _exit_status(self) -> int:
        """Waits for the process to end, and kills it when it does not."""
        try:
            return await asyncio.wait_for(self.process.wait(), timeout=EXIT_GRACE_S)
        except TimeoutError:
            self.process.kill()
            return await self.process.wait()

    def _die(self, why: str) -> None:
        if self.death is not None:
            return
        self.death = why
        generations, self._generations = self._generations, {}
        for generation in generations.values():
            generation.fail(EngineDead(why))
        if self._profile is not None and not self._profile.done():
            self._profile.set_result(Profiled("", 0, why))


# Where this package lies, installed or not, before whatever the environment asks for.
_PACKAGES = os.pathsep.join(
    filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")))
)
_DECODER = msgspec.msgpack.Decoder(FromEngine)


def _ignore(steps: Steps) -> None:
    """Nobody counts."""


def _merge(first: Output, second: Output) -> Output:
    """The second after the first, whose lists grow in place: nobody has seen them yet."""
    first.token_ids.extend(second.token_ids)
    logprobs = first.logprobs
    if logprobs is None:
        logprobs = second.logprobs
    elif second.logprobs is not None:
        logprobs.extend(second.logprobs)
    return Output(
        first.id,
        first.choice,
        first.token_ids,
        logprobs,
        second.finish,
        {**first.extras, **second.extras},
    )
