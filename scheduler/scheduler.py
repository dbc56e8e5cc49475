"""Requests come, run and end; `scheduler.planning` says in which steps.

plan = scheduler.plan(now_s)
result = runner.execute(plan)
news = scheduler.commit(result)
"""

from __future__ import annotations

import msgspec

from scheduler.admission import Limits, Sizes, never_fits
from scheduler.backlog import Backlog
from scheduler.budget import Budget, Predictor, StepSums
from scheduler.config import SchedulerConfig
from scheduler.fairness import ServiceCounters
from scheduler.leaders import PrefixLeaders
from scheduler.logprobs import TokenLogprobs
from scheduler.outcome import Choice, Refusal
from scheduler.pages import PagePool
from scheduler.plan import Row, StepPlan, StepResult
from scheduler.planning import PlannedStep, StepPlanner
from scheduler.pre_warm import PreWarmer
from scheduler.prefix import prefix_keys, root_key
from scheduler.queue import WaitingQueue
from scheduler.request import FinishReason, Sampling, Sequence
from scheduler.running import RunningSet
from scheduler.turns import EndedTurns, Why

REMEMBERED_ROOTS = 4096


class Scheduler:
    """Queue, pages and running set of one replica. Pure: no clock, no tensors, no sockets.

    plan() and commit() alternate; submit(), stop(), abort() and turn_ended() come in between.
    `predictor` tells what steps take, for `inter_token_target_s`.
    """

    def __init__(self, config: SchedulerConfig, predictor: Predictor | None = None) -> None:
        size = config.page_tokens
        capacity = config.total_pages * size
        if config.max_model_len > capacity:
            raise ValueError(
                f"max_model_len is {config.max_model_len}; the pages hold {capacity} tokens"
            )
        self.config, self.predictor = config, predictor
        self.pool = PagePool(config.total_pages, config.cost_doubling_tokens / size)
        self.service = ServiceCounters()
        self.waiting = WaitingQueue(self.service)
        self.pre_warmer = PreWarmer(
            self.pool,
            page_tokens=size,
            longest_tokens=config.max_model_len,
            limit=config.max_pre_warms if config.prefix_caching else 0,
            unused_s=config.pre_warm_unused_s,
        )
        self.backlog = Backlog()
        leaders = PrefixLeaders(self.waiting)
        self._running = RunningSet(config, self.pool, self.service, leaders)
        self._planner = StepPlanner(
            config,
            predictor,
            self._running,
            self.waiting,
            leaders,
            self.backlog,
            self.pre_warmer,
        )
        self._turns = EndedTurns(
            self.pool,
            page_tokens=size,
            remembered=4 * config.max_num_seqs,
            awaited_s=config.awaited_s,
            awaited_share=config.awaited_share,
        )
        self._requests: dict[str, list[Sequence]] = {}
        """Unfinished sequences of each request."""
        self._step = PlannedStep(Budget(config))
        self._steps = 0
        self._arrivals = 0
        self._eos = frozenset(config.eos_token_ids)
        self._limits = Limits(
            max_model_len=config.max_model_len,
            max_queued_requests=config.max_queued_requests,
            max_queued_tokens=0,
        )
        self._roots: dict[tuple[str, str], bytes] = {}
        """Parent of first pages by tenant and salt; other threads look it up too."""

    @property
    def running(self) -> list[Sequence]:
        """Sequences with a slot, those that decode first; the pre-warmed one is not among them."""
        return [*self._running.decoding.values(), *self._running.prefilling.values()]

    @property
    def step_sums(self) -> StepSums:
        """Sums over the rows of the step that was planned last, committed or not."""
        return self._step.sums

    @property
    def preemptions(self) -> int:
        return self._planner.preemptions

    @property
    def backlog_tokens(self) -> int:
        """Prompt tokens that still have to be computed, as far as is known."""
        return self.backlog.tokens

    @property
    def has_work(self) -> bool:
        return bool(
            self._running or len(self.waiting) or self._running.forget or len(self.pre_warmer)
        )

    # ---------------------------------------------------------------- requests come and go

    def prompt_keys(self, token_ids: list[int], tenant: str, cache_salt: str) -> list[bytes]:
        """Returns the identities of a prompt's full pages. Any thread may call it, at any time."""
        if not self.config.prefix_caching:
            return []
        return prefix_keys(self._root(tenant, cache_salt), token_ids, self.config.page_tokens)

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
        keys: list[bytes] | None = None,
    ) -> int | Refusal:
        """Queues a request of `n` choices. Returns its prompt tokens now cached, or a refusal.

        `token_ids` must not change later. `keys` are its prompt_keys, computed here when they are
        None. Choices after the first share its prompt: they wait until the first has it in the
        cache.
        """
        config, size = self.config, self.config.page_tokens
        if request_id in self._requests:
            return Refusal(400, "duplicate_request_id", f"request id {request_id!r} is running")
        never = never_fits(self._limits, Sizes(prompt_tokens=len(token_ids), n=n))
        if never is not None:
            return never
        if self.waiting.count + n > config.max_queued_requests:
            return Refusal(
                429,
                "queue_full",
                f"{len(self.waiting)} sequences are waiting; the limit is "
                f"{config.max_queued_requests}",
            )
        root = self._root(tenant, cache_salt)
        if keys is None:
            keys = self.prompt_keys(token_ids, tenant, cache_salt)
        stop_tokens = frozenset(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            stop_tokens |= self._eos
        shared_pages = min(len(keys), (len(token_ids) - 1) // size)
        # Whose prompt is scored has its first choice compute all of it.
        scored = sampling.prompt_logprobs is not None and len(token_ids) > 1
        cached_pages = 0 if scored else self.pool.count_known(keys, shared_pages)
        cached_tokens = cached_pages * size
        continues = cached_pages > 0 and self._turns.awaits(keys[cached_pages - 1])
        for choice in range(n):
            sequence = Sequence(
                request_id,
                choice,
                token_ids,
                sampling,
                root_key=root,
                arrival=self._arrivals,
                keys=list(keys),
                priority=priority,
                tenant=tenant,
                continues=continues,
                stop_tokens=stop_tokens,
                end_tokens=min(len(token_ids) + sampling.max_tokens, config.max_model_len),
            )
            self._arrivals += 1
            self._requests.setdefault(request_id, []).append(sequence)
            found_tokens = shared_pages * size if choice else cached_tokens
            self.backlog.set(sequence, len(token_ids) - found_tokens)
            self.waiting.push(sequence)
        return cached_tokens

    def stop(self, request_id: str, choice: int, at_token: int) -> list[Choice]:
        """Ends one choice after its `at_token`-th generated token; unknown ones are ignored.

        Tokens generated beyond it are dropped: the turn's pages end where its text ended.
        """
        for sequence in self._requests.get(request_id, ()):
            if sequence.choice == choice:
                del sequence.output_ids[max(0, at_token) :]
                kept = sequence.prompt_tokens + max(0, at_token)
                sequence.computed_tokens = min(sequence.computed_tokens, kept)
        return self._end_early(request_id, "stop", choice)

    def abort(self, request_id: str) -> list[Choice]:
        """Ends every choice of a request; unknown ones are ignored."""
        return self._end_early(request_id, "abort", None)

    def turn_ended(
        self,
        request_id: str,
        choice: int,
        why: Why,
        flip_token: int | None,
        *,
        next_prefix: list[int] | None = None,
        now_s: float = 0.0,
    ) -> None:
        """Classifies the idle pages of a finished choice by what the next turn will need.

        `flip_token` is the first position that the next user message changes (None: none), and
        `next_prefix` the tokens its prompt will start with, to be pre-warmed.
        """
        self.pool.now_s = now_s
        turn = self._turns.classify((request_id, choice), why, flip_token, now_s)
        if turn is not None and why == "answer" and next_prefix:
            self.pre_warmer.add(request_id, turn.root_key, next_prefix)

    # ---------------------------------------------------------------- one step

    def plan(self, now_s: float = 0.0) -> StepPlan:
        """Returns the next step's plan; its rows must be committed before the next plan.

        `now_s` is the time by any clock that turn_ended() is told too.
        """
        assert not self._step.rows, "the previous plan was not committed"
        self.pool.now_s = now_s
        self._turns.expire(now_s)
        self._step = self._planner.plan(self._steps)
        self._steps += 1
        return self._step.plan

    def commit(self, result: StepResult) -> list[Choice]:
        """Takes a step's tokens in; returns the news of every choice that got one or ended.

        Raises ValueError when the result has not one token per row.
        """
        step = self._step
        planned, rows, decodes = step.sequences, step.rows, step.decode_rows
        tokens, logprobs = result.token_ids, result.logprobs
        if not len(rows) == len(tokens) == len(logprobs):
            raise ValueError(f"{len(tokens)} tokens and {len(logprobs)} logprobs, {len(rows)} rows")
        self._step = PlannedStep(step.budget)
        # Scored prompts take time that the predictor has no term for.
        timed = rows and result.seconds > 0 and not result.prompt_logprobs
        if self.predictor is not None and timed:
            self.predictor.observe(step.sums, result.seconds)
        news: list[Choice] = []
        # All that a decode row needs in most steps, in one place: this loop is the step's overhead.
        for sequence, token, logprob in zip(planned[:decodes], tokens, logprobs, strict=False):
            computed = sequence.computed_tokens + 1
            sequence.computed_tokens = computed
            if computed == sequence.full_tokens:
                self._running.page_full(sequence)
            if token < 0:
                news.append(self._fail(sequence))
                continue
            output = sequence.output_ids
            output.append(token)
            if token in sequence.stop_tokens or len(output) >= sequence.output_limit:
                news.append(self._finish(sequence, token, logprob))
            else:
                own = None if logprob is None else [logprob]
                news.append(Choice(sequence.request_id, sequence.choice, [token], own, None))
        for place in range(decodes, len(rows)):
            sequence, row = planned[place], rows[place]
            sequence.computed_tokens = row.start + row.count
            self._running.page_full(sequence)
            if sequence is self.pre_warmer.active:
                self._pre_warmed(sequence, row.count)
                continue
            self.backlog.set(sequence, sequence.prompt_tokens - sequence.computed_tokens)
            if row.sample == "every":
                self._take_prompt_logprobs(sequence, row, result.prompt_logprobs[place])
            ends = row.start + row.count == sequence.known_tokens
            if row.sample == "last" or (row.sample == "every" and ends):
                news.append(self._first_token(sequence, tokens[place], logprobs[place]))
        return news

    # ---------------------------------------------------------------- the end of a choice

    def _first_token(self, sequence: Sequence, token: int, logprob: TokenLogprobs | None) -> Choice:
        """The known tokens of a sequence are computed; it has its first new token."""
        if token < 0:
            return self._fail(sequence)
        self._running.decode(sequence)
        output = sequence.output_ids
        output.append(token)
        first = len(output) == 1
        cached_tokens = sequence.cached_tokens if first else None
        scores = sequence.prompt_logprobs if first else None
        sequence.prompt_logprobs = None  # handed out; those of a long prompt take megabytes
        if token in sequence.stop_tokens or len(output) >= sequence.output_limit:
            choice = self._finish(sequence, token, logprob)
            return msgspec.structs.replace(
                choice, cached_tokens=cached_tokens, prompt_logprobs=scores
            )
        own = None if logprob is None else [logprob]
        return Choice(
            sequence.request_id,
            sequence.choice,
            [token],
            own,
            None,
            cached_tokens=cached_tokens,
            prompt_logprobs=scores,
        )

    @staticmethod
    def _take_prompt_logprobs(sequence: Sequence, row: Row, found: list[TokenLogprobs]) -> None:
        """Takes in what a row says of the prompt's tokens. After a preemption it says some again,
        and of generated ones what is known."""
        known = sequence.prompt_logprobs
        assert known is not None
        missing = sequence.prompt_tokens - 1 - len(known)
        known += found[len(known) - row.start :][:missing]

    def _finish(self, sequence: Sequence, token: int, logprob: TokenLogprobs | None) -> Choice:
        """Ends a sequence with its last token."""
        self._end(sequence)
        own = None if logprob is None else [logprob]
        request_id, choice = sequence.request_id, sequence.choice
        if token in sequence.stop_tokens:
            return Choice(request_id, choice, [token], own, "stop", token)
        return Choice(request_id, choice, [token], own, "length")

    def _fail(self, sequence: Sequence) -> Choice:
        """Ends a sequence that nothing could be sampled for."""
        self._end(sequence)
        return Choice(sequence.request_id, sequence.choice, [], None, "error")

    def _end(self, sequence: Sequence) -> None:
        """The sequence's pages go back; its request is forgotten with its last choice."""
        full = sequence.computed_tokens // self.config.page_tokens
        name = (sequence.request_id, sequence.choice)
        self._turns.add(name, sequence.root_key, sequence.keys[:full])
        if sequence.waiting:
            self.waiting.remove(sequence)
        self._running.charge_output(sequence)
        self._running.release(sequence, keep=full)
        self.backlog.set(sequence, 0)
        siblings = self._requests[sequence.request_id]
        siblings.remove(sequence)
        if not siblings:
            del self._requests[sequence.request_id]

    def _end_early(self, request_id: str, why: FinishReason, choice: int | None) -> list[Choice]:
        assert not self._step.rows, "a step is in flight"
        news = []
        for sequence in list(self._requests.get(request_id, ())):
            if choice is None or sequence.choice == choice:
                self._end(sequence)
                news.append(Choice(request_id, sequence.choice, [], None, why))
        return news

    def _pre_warmed(self, sequence: Sequence, count: int) -> None:
        self.pre_warmer.computed_tokens += count
        if sequence.computed_tokens == sequence.prompt_tokens:
            self.pre_warmer.finish()
            self._running.release(sequence)

    def _root(self, tenant: str, cache_salt: str) -> bytes:
        root = self._roots.get((tenant, cache_salt))
        if root is None:
            config = self.config
            root = root_key(config.boot_secret, config.weight_version, tenant, cache_salt)
            if len(self._roots) >= REMEMBERED_ROOTS:
                self._roots.clear()
            self._roots[tenant, cache_salt] = root
        return root
