"""What runs next: one plan per step, decode and prefill mixed under one token budget.

There are no phases. Every running sequence asks for its known tokens minus its computed ones: one
when it decodes, many while its prompt is prefilled. Sequences that run come first, those that
decode before those that prefill, else in order of admission; waiting ones join, by priority and
arrival, when there is a slot, budget, and pages for all their known tokens. When a running sequence
finds no page, the one of the lowest priority and last arrival is preempted: its pages go back, it
waits at its place in the queue, and finds most of them again by their identity. Priority orders the
queue; a waiting sequence never preempts a running one.
"""

from __future__ import annotations

from bisect import insort
from typing import Literal, NamedTuple

from scheduler.budget import Budget
from scheduler.config import SchedulerConfig
from scheduler.outcome import Choice, Refusal
from scheduler.pages import IdleClass, OutOfPages, PagePool
from scheduler.plan import NewSlot, Prepare, Row, StepPlan, StepResult
from scheduler.prefix import extend_keys, root_key
from scheduler.request import FinishReason, Sampling, Sequence


class Waiting(NamedTuple):
    """An entry of the queue, in its order: priority, then arrival."""

    priority: int
    arrival: int
    sequence: Sequence


class Scheduler:
    """Queue, pages and running set of one replica. Pure: no clock, no tensors, no sockets.

    plan() and commit() alternate; submit(), stop(), abort() and turn_ended() come in between.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        capacity = config.total_pages * config.page_tokens
        if config.max_model_len > capacity:
            raise ValueError(
                f"max_model_len is {config.max_model_len}; the pages hold {capacity} tokens"
            )
        self.config = config
        self.pool = PagePool(config.total_pages)
        self.running: list[Sequence] = []
        self.waiting: list[Waiting] = []
        self.preemptions = 0
        self._requests: dict[str, list[Sequence]] = {}
        """Unfinished sequences of each request."""
        self._priorities: dict[str, int] = {}
        self._ended: dict[tuple[str, int], list[bytes]] = {}
        """Page identities of finished choices whose turn's end is not classified yet."""
        self._free_slots = list(range(config.max_num_seqs - 1, -1, -1))
        self._forget: list[int] = []
        self._planned: list[tuple[Sequence, Row]] = []
        self._step = 0
        self._arrivals = 0

    # ---------------------------------------------------------------- requests come and go

    def submit(
        self,
        request_id: str,
        token_ids: list[int],
        sampling: Sampling,
        *,
        n: int = 1,
        priority: int = 0,
        tenant: str = "",
        cache_salt: str = "",
    ) -> int | Refusal:
        """Queues a request of `n` choices. Returns its prompt tokens now cached, or a refusal.

        Choices after the first wait until the first has its prompt in the cache, and share it.
        """
        config = self.config
        if request_id in self._requests:
            return Refusal(400, "duplicate_request_id", f"request id {request_id!r} is running")
        if not token_ids:
            return Refusal(400, "invalid_request_error", "the prompt has no tokens", "messages")
        if not 1 <= n <= config.max_queued_requests:
            return Refusal(
                400,
                "invalid_request_error",
                f"n is {n}; it must be in [1, {config.max_queued_requests}]",
                "n",
            )
        if len(token_ids) >= config.max_model_len:
            return Refusal(
                400,
                "context_length_exceeded",
                f"the prompt has {len(token_ids)} tokens; at most {config.max_model_len - 1} "
                f"leave room for an answer in the window of {config.max_model_len}",
                "messages",
            )
        if len(self.waiting) + n > config.max_queued_requests:
            return Refusal(
                429,
                "queue_full",
                f"{len(self.waiting)} sequences are waiting; the limit is "
                f"{config.max_queued_requests}",
            )
        root = root_key(config.boot_secret, config.weight_version, tenant, cache_salt)
        first: Sequence | None = None
        sequences = []
        for choice in range(n):
            sequence = Sequence(
                request_id,
                choice,
                list(token_ids),
                sampling,
                root_key=root,
                arrival=self._arrivals,
                waits_for=first if config.prefix_caching else None,
            )
            self._arrivals += 1
            if first is None:
                first = sequence
                if config.prefix_caching:
                    extend_keys(sequence.keys, root, token_ids, len(token_ids), config.page_tokens)
            else:
                sequence.keys = list(first.keys)
            sequences.append(sequence)
            insort(self.waiting, Waiting(priority, sequence.arrival, sequence))
        assert first is not None
        self._requests[request_id] = sequences
        self._priorities[request_id] = priority
        return len(self._hits(first)) * config.page_tokens

    def stop(self, request_id: str, choice: int, at_token: int) -> list[Choice]:
        """Ends one choice after its `at_token`-th generated token; unknown ones are ignored.

        Tokens generated beyond it are dropped: the turn's pages end where its text ended.
        """
        for sequence in self._requests.get(request_id, ()):
            if sequence.choice == choice:
                kept = sequence.prompt_tokens + max(0, at_token)
                del sequence.token_ids[kept:]
                sequence.computed_tokens = min(sequence.computed_tokens, kept)
        return self._end_early(request_id, "stop", choice)

    def abort(self, request_id: str) -> list[Choice]:
        """Ends every choice of a request; unknown ones are ignored."""
        return self._end_early(request_id, "abort", None)

    def turn_ended(
        self,
        request_id: str,
        choice: int,
        why: Literal["tool_calls", "answer", "length", "aborted"],
        flip_token: int | None,
    ) -> None:
        """Classifies the idle pages of a finished choice by what the next turn will need.

        tool_calls: the same prefix comes back soon, all pages are awaited. answer: pages from
        `flip_token` on (None: none) are dead, since the next user message changes that token.
        """
        keys = self._ended.pop((request_id, choice), [])
        # Tail first, as in _release: a prefix that loses its first page loses all of it.
        for page in reversed(range(len(keys))):
            if why == "tool_calls":
                self.pool.reclassify(keys[page], "awaited")
            elif why == "answer" and flip_token is not None:
                if (page + 1) * self.config.page_tokens > flip_token:
                    self.pool.reclassify(keys[page], "dead")

    # ---------------------------------------------------------------- one step

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting or self._forget)

    def plan(self) -> StepPlan:
        """Returns the next step's plan; its rows must be committed before the next plan."""
        assert not self._planned, "the previous plan was not committed"
        budget = Budget(self.config)
        new_slots: list[NewSlot] = []
        new_pages: list[tuple[int, tuple[int, ...]]] = []
        preemptions = self.preemptions

        # Decode before prefill: a long prompt must not stall the answers that stream.
        for sequence in sorted(self.running, key=_needs_many):
            if sequence.slot < 0:  # preempted for an earlier one of this loop
                continue
            count = budget.fit(sequence, len(sequence.token_ids) - sequence.computed_tokens)
            if not count:
                continue
            pages = self._grow(sequence, sequence.computed_tokens + count)
            while pages is None and sequence.slot >= 0:
                self._preempt(max(self.running, key=self._rank), budget)
                if sequence.slot >= 0:
                    pages = self._grow(sequence, sequence.computed_tokens + count)
            if pages is None:
                continue
            if pages:
                new_pages.append((sequence.slot, tuple(pages)))
            self._add_row(budget, sequence, count)

        if self.preemptions == preemptions:
            self._admit(budget, new_slots)
        plan = StepPlan(
            self._step,
            tuple(row for _, row in self._planned),
            Prepare(
                tuple(new_slots),
                tuple((slot, pages) for slot, pages in new_pages if slot not in self._forget),
            ),
            tuple(self._forget),
        )
        self._forget = []
        self._step += 1
        return plan

    def commit(self, result: StepResult) -> list[Choice]:
        """Takes a step's tokens in; returns the news of every choice that got one or ended."""
        news = []
        planned, self._planned = self._planned, []
        for (sequence, row), token, logprob in zip(
            planned, result.token_ids, result.logprobs, strict=True
        ):
            sequence.computed_tokens = row.start + row.count
            self._publish(sequence)
            if row.sample == "none":
                continue
            sequence.token_ids.append(token)
            finish, stop_token = self._finish(sequence, token)
            news.append(
                Choice(
                    sequence.request_id,
                    sequence.choice,
                    [token],
                    None if logprob is None else [logprob],
                    finish,
                    stop_token,
                    sequence.cached_tokens if sequence.generated_tokens == 1 else None,
                )
            )
            if finish:
                self.running.remove(sequence)
                self._end(sequence)
        return news

    @property
    def backlog_tokens(self) -> int:
        """Prompt tokens that still have to be computed."""
        waiting = (w.sequence for w in self.waiting)
        return sum(max(0, s.prompt_tokens - s.computed_tokens) for s in (*self.running, *waiting))

    # ---------------------------------------------------------------- inside

    def _hits(self, sequence: Sequence) -> list[bytes]:
        """Identities of the leading pages found in the pool; at most prompt - 1 tokens, so that
        one token is left whose logits start the answer."""
        limit = (len(sequence.token_ids) - 1) // self.config.page_tokens
        hits = []
        for key in sequence.keys[:limit]:
            if not self.pool.knows(key):
                break
            hits.append(key)
        return hits

    def _admit(self, budget: Budget, new_slots: list[NewSlot]) -> None:
        """Starts waiting sequences in order until one does not fit; none overtakes it."""
        index = 0
        while index < len(self.waiting) and self._free_slots and budget.tokens > 0:
            sequence = self.waiting[index].sequence
            if self._waits_for_sibling(sequence):
                index += 1
                continue
            hits = self._hits(sequence)
            pages_total = -(-len(sequence.token_ids) // self.config.page_tokens)
            revived = sum(self.pool.is_idle(key) for key in hits)
            if pages_total - len(hits) + revived > self.pool.available_pages:
                return
            start = len(hits) * self.config.page_tokens
            sequence.computed_tokens = start
            count = budget.fit(sequence, len(sequence.token_ids) - start)
            if not count:
                sequence.computed_tokens = 0
                return
            del self.waiting[index]
            sequence.pages = [self.pool.share(key) for key in hits]
            sequence.pages += self.pool.allocate(pages_total - len(hits))
            sequence.slot = self._free_slots.pop()
            self.running.append(sequence)
            if sequence.cached_tokens is None:
                sequence.cached_tokens = start
            new_slots.append(
                NewSlot(
                    sequence.slot,
                    sequence.request_id,
                    sequence.choice,
                    list(sequence.token_ids),
                    sequence.prompt_tokens,
                    sequence.sampling,
                    list(sequence.pages),
                )
            )
            self._add_row(budget, sequence, count)

    def _waits_for_sibling(self, sequence: Sequence) -> bool:
        """Whether the choice that computes the shared prompt still has to get there."""
        first = sequence.waits_for
        if first is None:
            return False
        shared = (sequence.prompt_tokens - 1) // self.config.page_tokens * self.config.page_tokens
        alive = first in self._requests.get(sequence.request_id, ())
        if alive and first.computed_tokens < shared:
            return True
        sequence.waits_for = None
        return False

    def _add_row(self, budget: Budget, sequence: Sequence, count: int) -> None:
        start = sequence.computed_tokens
        budget.spend(start, count)
        row = Row(
            sequence.slot,
            start,
            count,
            "last" if start + count == len(sequence.token_ids) else "none",
            self.config.forms.form(start, count),
        )
        self._planned.append((sequence, row))

    def _grow(self, sequence: Sequence, tokens: int) -> list[int] | None:
        """Gives the sequence pages for `tokens` tokens: the new ones, None when there are none."""
        missing = -(-tokens // self.config.page_tokens) - len(sequence.pages)
        if missing <= 0:
            return []
        try:
            pages = self.pool.allocate(missing)
        except OutOfPages:
            return None
        sequence.pages += pages
        return pages

    def _publish(self, sequence: Sequence) -> None:
        """Gives full pages their identity."""
        if not self.config.prefix_caching:
            return
        size, computed = self.config.page_tokens, sequence.computed_tokens
        extend_keys(sequence.keys, sequence.root_key, sequence.token_ids, computed, size)
        for page in range(sequence.published_pages, computed // size):
            self.pool.publish(sequence.pages[page], sequence.keys[page])
        sequence.published_pages = computed // size

    def _preempt(self, sequence: Sequence, budget: Budget) -> None:
        """Takes a running sequence's pages, slot and row; it waits where its arrival puts it."""
        self.running.remove(sequence)
        for planned, row in self._planned:
            if planned is sequence:
                budget.give_back(row.start, row.count)
        self._planned = [(s, row) for s, row in self._planned if s is not sequence]
        self._release(sequence)
        sequence.computed_tokens = 0
        insort(self.waiting, Waiting(*self._rank(sequence), sequence))
        self.preemptions += 1

    def _rank(self, sequence: Sequence) -> tuple[int, int]:
        """Place in the queue; the highest is preempted first."""
        return self._priorities[sequence.request_id], sequence.arrival

    def _release(self, sequence: Sequence, keep: int | None = None) -> None:
        """Gives slot and pages back; pages after the first `keep` hold nothing worth keeping."""
        # Tail first: of one sequence's idle pages the last are the first to be evicted.
        for index, page in reversed(list(enumerate(sequence.pages))):
            kind: IdleClass = "stable" if keep is None or index < keep else "dead"
            self.pool.release(page, kind)
        sequence.pages = []
        sequence.published_pages = 0
        if sequence.slot >= 0:
            self._forget.append(sequence.slot)
            self._free_slots.append(sequence.slot)
            sequence.slot = -1

    def _finish(self, sequence: Sequence, token: int) -> tuple[FinishReason | None, int | None]:
        sampling = sequence.sampling
        ends = token in sampling.stop_token_ids or (
            token in self.config.eos_token_ids and not sampling.ignore_eos
        )
        if ends:
            return "stop", token
        if sequence.generated_tokens >= sampling.max_tokens:
            return "length", None
        if len(sequence.token_ids) >= self.config.max_model_len:
            return "length", None
        return None, None

    def _end(self, sequence: Sequence) -> None:
        """The sequence's pages go back; its request is forgotten with its last choice."""
        full = sequence.computed_tokens // self.config.page_tokens
        self._ended[(sequence.request_id, sequence.choice)] = sequence.keys[:full]
        while len(self._ended) > 4 * self.config.max_num_seqs:
            del self._ended[next(iter(self._ended))]
        self._release(sequence, keep=full)
        siblings = self._requests[sequence.request_id]
        siblings.remove(sequence)
        if not siblings:
            del self._requests[sequence.request_id]
            del self._priorities[sequence.request_id]

    def _end_early(self, request_id: str, why: FinishReason, choice: int | None) -> list[Choice]:
        assert not self._planned, "a step is in flight"
        news = []
        for sequence in list(self._requests.get(request_id, ())):
            if choice is not None and sequence.choice != choice:
                continue
            if sequence.slot >= 0:
                self.running.remove(sequence)
            else:
                self.waiting = [w for w in self.waiting if w.sequence is not sequence]
            self._end(sequence)
            news.append(Choice(request_id, sequence.choice, [], None, why))
        return news


def _needs_many(sequence: Sequence) -> bool:
    return len(sequence.token_ids) - sequence.computed_tokens > 1
