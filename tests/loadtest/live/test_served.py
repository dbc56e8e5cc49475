"""loadtest.live.served: the server never outlives the test."""

from __future__ import annotations

import signal

import pytest

from loadtest.live.served import served
from loadtest.live.service import ServiceError


def test_a_signal_to_stop_ends_the_block_and_is_handled_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ServiceError, match="no-such-option"), served(["--no-such-option"]):
        pass
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_raises_inside_the_block() -> None:
    handlers = []

    class Popen:
        """Looks at who would hear SIGTERM while the server starts."""

        def __init__(self, *_: object, **__: object) -> None:
            handlers.append(signal.getsignal(signal.SIGTERM))
            raise OSError("not started")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loadtest.live.served.subprocess.Popen", Popen)
        with pytest.raises(OSError, match="not started"), served([]):
            pass
    (handler,) = handlers
    assert callable(handler)
    with pytest.raises(SystemExit) as left:
        handler(signal.SIGTERM, None)
    assert left.value.code == 128 + signal.SIGTERM
