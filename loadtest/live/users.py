"""Locust's users: one class per workload, and one that makes others come at their times.

Importing this file imports locust, which patches the standard library.
"""

from __future__ import annotations

from typing import ClassVar

from gevent.pool import Group
from locust import User, task
from locust.env import Environment
from locust.exception import StopUser

from loadtest.live.client import Client
from loadtest.live.plan import Session, Sessions
from loadtest.live.profiles import Workload
from loadtest.live.session import Run


class Load:
    """What the users of one run share."""

    def __init__(self, run: Run, sessions: Sessions) -> None:
        self.run, self.sessions = run, sessions
        self.arrived = Group()
        """Sessions of an open loop."""
        self._idle: list[Client] = []

    def arrive(self, session: Session) -> None:
        """Begins a session beside all others, on a connection that nobody uses."""
        client = self._idle.pop() if self._idle else self.run.client()
        self.arrived.spawn(self._play, session, client)

    def _play(self, session: Session, client: Client) -> None:
        with self.run.watched():
            self.run.play(session.workload, session.script, client, due_s=session.due_s)
            self._idle.append(client)


class LoadEnvironment(Environment):
    """Locust's environment, with our load in it."""

    load: Load


class SessionUser(User):
    """Has one session after the other: the closed loop."""

    abstract = True
    workload: ClassVar[Workload]
    environment: LoadEnvironment

    def on_start(self) -> None:
        self.chat = self.environment.load.run.client()

    def on_stop(self) -> None:
        self.chat.connection.close()

    @task
    def session(self) -> None:
        load = self.environment.load
        with load.run.watched():
            script = load.sessions.next_script(self.workload)
            retry_s = load.run.play(self.workload, script, self.chat)
            load.run.wait(retry_s)
        if load.run.ending:
            raise StopUser


class ChatUser(SessionUser):
    """Talks for a few turns."""

    workload = "chat"


class LongContextUser(SessionUser):
    """Asks about long texts."""

    workload = "long-context"


class AgentUser(SessionUser):
    """Calls tools in a loop and sends the reasoning back with their results."""

    workload = "agent"


class DroppingAgentUser(SessionUser):
    """Does the same but drops the reasoning, as clients made for other models do."""

    workload = "agent-dropping"


class BudgetUser(SessionUser):
    """Asks hard questions, thought about for as long as the report says."""

    workload = "budget"


class ArrivalsUser(User):
    """The open loop: walks the schedule and lets sessions arrive. There is one of it."""

    fixed_count = 1
    environment: LoadEnvironment

    @task
    def walk(self) -> None:
        load = self.environment.load
        with load.run.watched():
            for session in load.sessions.schedule():
                if not load.run.wait(session.due_s - load.run.now_s):
                    break
                load.arrive(session)
        # A trace is at its end.
        load.run.stop()
        raise StopUser


USERS: dict[Workload, type[SessionUser]] = {
    user.workload: user
    for user in (ChatUser, LongContextUser, AgentUser, DroppingAgentUser, BudgetUser)
}


def user_classes(sessions: Sessions) -> list[type[User]]:
    """Returns the users that a plan needs, with their weights."""
    plan = sessions.plan
    if plan.open_loop:
        return [ArrivalsUser]
    chosen: list[type[User]] = []
    for part in plan.parts:
        user = USERS[part.workload]
        user.weight = part.weight
        chosen.append(user)
    return chosen
