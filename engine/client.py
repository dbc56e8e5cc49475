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
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from engine.config import ConfigError, EngineConfig
from engine.generation import EngineDead, EngineRefused, Generation
from engine.heap import set_heap_aside
from engine.hub import resolve_model
from engine.messages import (
    Abort,
    Accepted,
    Failed,
    FromEngine,
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
    "set_heap_aside",
]


STACKS_GRACE_S = 0.5
"""How long a process that hangs may take to say where."""
UNREAD_GRACE_S = 2.0
"""How long the last messages may take to be read, once nothing more is to come."""
EXIT_GRACE_S = 10.0
"""How long a process whose socket has closed may take to end by itself."""


class EngineClient:
    """One engine and the socket to it; its process, too, where this client has started it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process | None,
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
        self._died = asyncio.Event()

    @classmethod
    async def start(
        cls, config: EngineConfig, listener: socket.socket | None = None
    ) -> EngineClient:
        """Returns a client whose engine has loaded its model; raises EngineDead if it cannot.

        listener: a listening Unix socket that the engine lets others in by; see `connect`.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            options = ["--socket-fd", str(theirs.fileno())]
            inherited = [theirs.fileno()]
            if listener is not None:
                options += ["--listen-fd", str(listener.fileno())]
                inherited.append(listener.fileno())
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # a folder named engine in the working directory must not be taken for ours
                "-m",
                "engine",
                *options,
                pass_fds=inherited,
                stdin=asyncio.subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": PACKAGES},
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        writer.write(frame(msgspec.json.encode(config)))
        client = cls(process, reader, writer)
        await client._introduce(config.silence_limit_s)
        return client

    @classmethod
    async def connect(cls, path: Path, silence_limit_s: float) -> EngineClient:
        """Returns a client of the engine that somebody else has started, once it is ready.

        Waits while there is none, or while it loads its model. Raises EngineDead when it ends
        instead, OSError when nobody listens at `path`.
        """
        reader, writer = await asyncio.open_unix_connection(path)
        client = cls(None, reader, writer)
        await client._introduce(silence_limit_s)
        return client

    async def _introduce(self, silence_limit_s: float) -> None:
        """Reads the engine's first message, and from then on all others."""
        try:
            first = await self._receive()
            if not isinstance(first, Ready):
                raise EngineDead(await self._cause(first))
        except BaseException:
            await self.close()
            raise
        self.ready = first
        self._silence_limit_s = silence_limit_s
        self._listener = asyncio.create_task(self._listen(), name="engine listener")

    @property
    def alive(self) -> bool:
        return self.death is None

    async def dead(self) -> str:
        """Returns why the engine is gone, once it is."""
        await self._died.wait()
        assert self.death is not None
        return self.death

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
        """Ends the engine, if this client has started it; open generations raise EngineDead."""
        self._send(Shutdown())
        self._die("the engine was shut down")
        if self._listener is not None:
            self._listener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listener
        self._writer.close()
        try:
            # An engine that hangs reads nothing any more, and must not hold this up.
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(self._writer.wait_closed(), timeout=UNREAD_GRACE_S)
            self._writer.transport.abort()
            await self._exit_status()
        except asyncio.CancelledError:
            self._kill()
            raise

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
            await self._ask_where_it_hangs()
            self._kill()
            why = f"the engine was silent for {self._silence_limit_s:g} seconds"
        except (ValueError, msgspec.DecodeError) as error:
            self._kill()
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
        if self.process is None:
            return "the engine has closed the connection"
        return f"the engine process ended with status {await self._exit_status()}"

    async def _exit_status(self) -> int | None:
        """Waits for the process to end, and kills it when it does not. None: it is another's."""
        if self.process is None:
            return None
        try:
            return await asyncio.wait_for(self.process.wait(), timeout=EXIT_GRACE_S)
        except TimeoutError:
            await self._ask_where_it_hangs()
            self._kill()
            return await self.process.wait()

    async def _ask_where_it_hangs(self) -> None:
        """Has the process write the stacks of its threads to stderr, if it still can."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGUSR1)
            await asyncio.sleep(STACKS_GRACE_S)

    def _kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()

    def _die(self, why: str) -> None:
        if self.death is not None:
            return
        self.death = why
        self._died.set()
        generations, self._generations = self._generations, {}
        for generation in generations.values():
            generation.fail(EngineDead(why))
        if self._profile is not None and not self._profile.done():
            self._profile.set_result(Profiled("", 0, why))


# Where this package lies, installed or not, before whatever the environment asks for.
PACKAGES = os.pathsep.join(
    filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")))
)
_DECODER = msgspec.msgpack.Decoder(FromEngine)


def _ignore(steps: Steps) -> None:
    """Nobody counts."""
