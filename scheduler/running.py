"""Sequences with a slot: what they hold, and what of it others can find."""

from __future__ import annotations

from scheduler.config import SchedulerConfig
from scheduler.fairness import ServiceCounters
from scheduler.leaders import PrefixLeaders
from scheduler.pages import OutOfPages, PagePool, Prefix
from scheduler.plan import NewSlot
from scheduler.prefix import extend_keys
from scheduler.request import Sequence


class RunningSet:
    """Slots and pages of running sequences; a pre-warmed one has them too, but is in neither dict.

    `forget` lists slots whose mirrors the engine has to drop.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        pool: PagePool,
        service: ServiceCounters,
        leaders: PrefixLeaders,
    ) -> None:
        self.config, self.pool, self.service, self.leaders = config, pool, service, leaders
        self.decoding: dict[int, Sequence] = {}
        """Slot -> sequence that needs one token, the next to be served first."""
        self.prefilling: dict[int, Sequence] = {}
        self.free_slots = list(range(config.max_num_seqs - 1, -1, -1))
        self.forget: list[int] = []

    def __bool__(self) -> bool:
        return bool(self.decoding or self.prefilling)

    def last(self) -> Sequence:
        """The one of the lowest priority and last arrival."""
        return max((*self.decoding.values(), *self.prefilling.values()), key=lambda s: s.rank)

    def start(self, sequence: Sequence, found: Prefix) -> NewSlot:
        """Gives a sequence a slot, the pages found in the cache, and new ones for the rest.

        Raises OutOfPages when there are not enough; then nothing changes.
        """
        size = self.config.page_tokens
        pages = -(-sequence.known_tokens // size)
        sequence.run = self.pool.hold(found)
        sequence.pages = found.pages() + self.pool.allocate(pages - found.end)
        sequence.computed_tokens = found.end * size
        sequence.published_pages = found.end
        new_slot = self.enter(sequence)
        self.prefilling[sequence.slot] = sequence
        if self.config.prefix_caching:
            self.leaders.advance(sequence)
        return new_slot

    def enter(self, sequence: Sequence) -> NewSlot:
        """Gives a sequence that has its pages a slot."""
        size = self.config.page_tokens
        sequence.capacity_tokens = len(sequence.pages) * size
        sequence.full_tokens = (sequence.computed_tokens // size + 1) * size
        sequence.slot = self.free_slots.pop()
        return NewSlot(
            sequence.slot,
            sequence.request_id,
            sequence.choice,
            sequence.token_ids if sequence.output_ids else sequence.prompt_ids,
            sequence.prompt_tokens,
            sequence.sampling,
            list(sequence.pages),
        )

    def decode(self, sequence: Sequence) -> None:
        """All known tokens are computed: one more each step from now on."""
        del self.prefilling[sequence.slot]
        self.decoding[sequence.slot] = sequence
        self.leaders.retire(sequence)

    def grow(self, sequence: Sequence) -> bool:
        """Gives a sequence one more page; returns whether there was one."""
        try:
            sequence.pages += self.pool.allocate(1)
        except OutOfPages:
            return False
        sequence.capacity_tokens += self.config.page_tokens
        return True

    def page_full(self, sequence: Sequence) -> None:
        """Publishes what is full now and charges the tenant; to be called at `full_tokens`."""
        size, computed = self.config.page_tokens, sequence.computed_tokens
        full = computed // size
        sequence.full_tokens = (full + 1) * size
        self.charge_output(sequence)
        published = sequence.published_pages
        if not self.config.prefix_caching or full == published:
            return
        keys, pages, publish = sequence.keys, sequence.pages, self.pool.publish
        if len(keys) < full:
            start = len(keys) * size
            new = sequence.tokens_from(start)
            extend_keys(keys, sequence.root_key, new, computed - start, size)
        for place in range(published, full):
            run = publish(pages[place], keys[place], sequence.run)
            if run is None:
                # Somebody else lives on the same page. What follows could not be reached through
                # this sequence's own; it is tried again with the next page.
                self.leaders.retire(sequence)
                break
            sequence.run, sequence.published_pages = run, place + 1
        else:
            if sequence.slot in self.prefilling:
                self.leaders.advance(sequence)

    def charge_output(self, sequence: Sequence) -> None:
        """Charges the tenant for tokens generated since the last time."""
        generated = len(sequence.output_ids)
        if generated > sequence.charged_tokens:
            tokens = generated - sequence.charged_tokens
            self.service.charge(sequence.tenant, output_tokens=tokens)
            sequence.charged_tokens = generated

    def release(self, sequence: Sequence, keep: int | None = None) -> None:
        """Takes slot and pages back; pages after the first `keep` hold nothing worth keeping."""
        published = sequence.published_pages
        self.decoding.pop(sequence.slot, None)
        self.prefilling.pop(sequence.slot, None)
        self.leaders.retire(sequence)
        self.pool.release(sequence.run, sequence.pages[published:])
        if keep is not None and keep < published:
            self.pool.reclassify(sequence.keys[:published], "dead", first=keep)
        sequence.run, sequence.pages = None, []
        sequence.capacity_tokens = sequence.published_pages = 0
        if sequence.slot >= 0:
            self.forget.append(sequence.slot)
            self.free_slots.append(sequence.slot)
            sequence.slot = -1
