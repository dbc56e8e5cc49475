"""Who starts next: priority, then the tenant served least, who continues, arrival."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler.fairness import FORGET_ABOVE, OUTPUT_WEIGHT, ServiceCounters
from scheduler.queue import HEAD_START, MOST_PASSES, WaitingQueue
from scheduler.request import Sampling, Sequence
from tests.scheduler.test_scheduler import Replica

NOTHING = Sampling(max_tokens=1)


def sequence(
    arrival: int, tenant: str = "", priority: int = 0, continues: bool = False
) -> Sequence:
    return Sequence(
        str(arrival), 0, [1], NOTHING, root_key=b"", arrival=arrival, tenant=tenant,
        priority=priority, continues=continues,
    )  # fmt: skip


class QueueAgainstModel(RuleBasedStateMachine):
    """The queue beside a list: who is in it, and who of one tenant and priority comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.service = ServiceCounters()
        self.queue = WaitingQueue(self.service)
        self.inside: list[Sequence] = []
        self.parked: dict[int, list[tuple[int, Sequence]]] = {}
        self.outside: list[Sequence] = []
        self.arrivals = 0

    @rule(tenant=st.sampled_from("abc"), priority=st.integers(0, 1), continues=st.booleans())
    def arrive(self, tenant: str, priority: int, continues: bool) -> None:
        self.inside.append(sequence(self.arrivals, tenant, priority, continues))
        self.queue.push(self.inside[-1])
        self.arrivals += 1

    @precondition(lambda self: self.outside)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(self.outside))
        self.outside.remove(chosen)
        chosen.continues = True  # preempted
        self.inside.append(chosen)
        self.queue.push(chosen)

    @precondition(lambda self: self.inside)
    @rule(tokens=st.integers(0, 50))
    def start(self, tokens: int) -> None:
        head = self.checked_head()
        self.queue.start(head)
        self.inside.remove(head)
        self.outside.append(head)
        self.service.charge(head.tenant, prompt_tokens=tokens)

    @precondition(lambda self: self.inside)
    @rule(leader=st.integers(-2, -1), pages=st.integers(1, 3))
    def park(self, leader: int, pages: int) -> None:
        head = self.checked_head()
        self.queue.park(head, sequence(leader), pages)
        self.inside.remove(head)
        self.parked.setdefault(leader, []).append((pages, head))

    @rule(leader=st.integers(-2, -1), published=st.none() | st.integers(0, 3))
    def unpark(self, leader: int, published: int | None) -> None:
        self.queue.unpark(sequence(leader), published)
        still = []
        for pages, follower in self.parked.pop(leader, []):
            if published is None or pages <= published:
                self.inside.append(follower)
            else:
                still.append((pages, follower))
        self.parked[leader] = still

    @precondition(lambda self: self.inside or any(self.parked.values()))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        followers = [s for each in self.parked.values() for _, s in each]
        chosen = data.draw(st.sampled_from([*self.inside, *followers]))
        self.queue.remove(chosen)
        self.inside = [s for s in self.inside if s is not chosen]
        for leader, each in self.parked.items():
            self.parked[leader] = [(p, s) for p, s in each if s is not chosen]

    def checked_head(self) -> Sequence:
        head = self.queue.head()
        assert head is not None and head in self.inside
        assert head.priority == min(s.priority for s in self.inside)
        rivals = [s for s in self.inside if s.priority == head.priority]
        assert self.service.served(head.tenant) == min(
            self.service.served(s.tenant) for s in rivals
        )
        own = [s for s in rivals if s.tenant == head.tenant]
        assert head is min(own, key=lambda s: (s.arrival - HEAD_START * s.continues, s.arrival))
        return head

    @invariant()
    def holds_the_same(self) -> None:
        followers = [s for each in self.parked.values() for _, s in each]
        expected = sorted(s.arrival for s in (*self.inside, *followers))
        assert sorted(s.arrival for s in self.queue) == expected
        assert len(self.queue) == len(expected)
        if not self.inside:
            assert self.queue.head() is None


TestQueue = QueueAgainstModel.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_flood_leaves_the_others_their_share() -> None:
    replica = Replica(max_num_seqs=1, max_queued_requests=64)
    for n in range(20):
        replica.submit(f"flood {n}", [5] * 8, Sampling(max_tokens=4, ignore_eos=True), tenant="f")
    for n in range(5):
        replica.submit(f"calm {n}", [6] * 8, Sampling(max_tokens=4, ignore_eos=True), tenant="c")
    order = [news.request_id.split()[0] for news in replica.finish() if news.finish]
    assert Counter(order[:11])["calm"] == 5, "by turns, though all of the flood came first"


def test_small_requests_get_as_many_tokens_as_large_ones() -> None:
    replica = Replica(max_num_seqs=1, max_queued_requests=64, prefix_caching=False)
    for n in range(30):
        replica.submit(f"small {n}", [5] * 4, Sampling(max_tokens=1), tenant="s")
        replica.submit(f"large {n}", [6] * 16, Sampling(max_tokens=1), tenant="l")
    order = [news.request_id.split()[0] for news in replica.finish() if news.finish]
    assert 22 <= Counter(order[:30])["small"] <= 25, "four to one, and a generated token each"


def test_a_pause_is_not_saved_up() -> None:
    service = ServiceCounters()
    service.arrive("busy")
    for _ in range(10):
        service.choose("busy")
        service.charge("busy", prompt_tokens=100)
    service.arrive("late")
    assert service.served("late") == 900, "where the busy one stood when it was last chosen"
    service.charge("late", output_tokens=10)
    assert service.served("late") == 900 + 10 * OUTPUT_WEIGHT


def test_counters_of_those_who_left_are_dropped() -> None:
    service = ServiceCounters()
    for n in range(3 * FORGET_ABOVE):
        service.arrive(f"t{n}")
        service.choose(f"t{n}")
        service.charge(f"t{n}", prompt_tokens=1)
    assert len(service._served) <= FORGET_ABOVE + 1


def test_what_is_behind_a_request_that_is_never_served_holds_no_prompt() -> None:
    queue = WaitingQueue(ServiceCounters())
    queue.push(sequence(0))
    gone = sequence(1)
    queue.push(gone)
    queue.remove(gone)
    assert not gone.prompt_ids and not gone.keys and len(queue) == 1


def test_a_new_turn_is_not_passed_for_ever() -> None:
    queue = WaitingQueue(ServiceCounters())
    queue.push(sequence(0))
    passed = 0
    for arrival in range(1, 2 * HEAD_START):
        queue.push(sequence(arrival, continues=True))
        head = queue.head()
        assert head is not None
        if head.arrival == 0:
            break
        queue.start(head)
        passed += 1
    assert passed == HEAD_START - 1


def test_while_a_new_turn_finds_no_room_others_go_on_before_it_but_not_for_ever() -> None:
    service = ServiceCounters()
    queue = WaitingQueue(service)
    new = sequence(0, "calm")
    queue.push(new)
    service.charge("busy", prompt_tokens=1000)
    passed = 0
    for arrival in range(1, 2 * MOST_PASSES):
        queue.push(sequence(arrival, "busy", continues=True))
        assert queue.head() is new
        passing = queue.passing(new)
        if passing is None:
            break
        queue.start(passing, new)
        passed += 1
    assert passed == MOST_PASSES
    queue.start(new)
    assert service.served("newcomer") == service.served("calm") == 0, (
        "those who passed were not the ones served least: newcomers do not start at their counter"
    )


def test_neither_new_turns_nor_other_priorities_pass() -> None:
    queue = WaitingQueue(ServiceCounters())
    for arrival, kind in enumerate([{}, {"tenant": "b"}, {"priority": 1, "continues": True}]):
        queue.push(sequence(arrival, **kind))  # type: ignore[arg-type]
    head = queue.head()
    assert head is not None and head.arrival == 0
    assert queue.passing(head) is None


def test_what_continues_is_passed_by_none() -> None:
    queue = WaitingQueue(ServiceCounters())
    queue.push(sequence(0, "a", continues=True))
    queue.push(sequence(1, "b", continues=True))
    head = queue.head()
    assert head is not None and head.arrival == 0
    assert queue.passing(head) is None
