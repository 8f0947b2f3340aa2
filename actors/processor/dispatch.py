"""Jobs onto GPU actors: choose, tell prefill and decode at the same moment, and go elsewhere when that fails.

Life of an attempt: `place` chooses the seats and asks them. A seat that refuses, is not there or stays silent leads at
once to the next attempt elsewhere, and to the line of those who wait if there is no other. When both have accepted,
frames come (`receive`) until a finish; what those that came together have brought is read together (`read`). Whatever
ends an attempt before, the other side is told to abort. What is at a seat that is suspected to hang (`doubted`) goes
elsewhere as soon as somebody is there; until then it stays, and goes on where it is if the seat comes back.
"""

import logging
import random
from collections.abc import Callable
from functools import partial
from typing import Final, Literal

from actors.processor.aborts import Aborts
from actors.processor.asks import Asks
from actors.processor.attempts import UNRANKED, why_no_other, works
from actors.processor.journal import Job, Journal, Leg
from actors.processor.router import choose
from actors.processor.view import Seat, View
from messages import codec, poison
from messages.bus import NobodyThereError, ServiceError, SilentError
from messages.frames import Finish, Item
from messages.ids import Role
from messages.subjects import Subjects
from messages.submit import Error

log = logging.getLogger("troupe.dispatch")

BUSY: Final = frozenset({409, 429, 503})
"""Codes that mean "ask another": an older life, full, not ready. Never a fault of the actor."""

CRASHES: Final = 2


class Dispatcher:
    """All attempts of one processor. `disaggregated` says whether the model's cast has prefill actors."""

    def __init__(
        self,
        *,
        view: View,
        journal: Journal,
        asks: Asks,
        subjects: Subjects,
        alias: str,
        incarnation: str,
        max_payload: int,
        disaggregated: bool,
        now: Callable[[], float],
        chance: random.Random | None = None,
    ) -> None:
        self._view = view
        self._journal = journal
        self._asks = asks
        self._aborts = Aborts(asks, subjects, incarnation, now)
        self._subjects = subjects
        self._alias = alias
        self._incarnation = incarnation
        self._max_payload = max_payload
        self._disaggregated = disaggregated
        self._now = now
        self._chance = chance or random.Random()
        self._at: dict[str, dict[str, Job]] = {}
        self._work: dict[str, str] = {}
        self._uneasy: dict[str, Job] = {}
        self._fled: dict[str, dict[str, Job]] = {}
        self._fresh: dict[str, Job] = {}
        self.waiting: dict[str, Job] = {}
        self.attempts = 0

    # Placing.

    def place(self, job: Job) -> None:
        """Give a job to actors that are ready; if there are none that can take it, it waits for a change."""
        if not self.place_now(job):
            self.waiting[job.id] = job

    def place_now(self, job: Job) -> bool:
        """Give a new job to actors that can take it now, unless others wait before it."""
        return not self.waiting and self._try(job)

    def retry(self) -> None:
        """Something has changed: try those who wait, first come first."""
        if self._uneasy:
            self._ease()
        if not self.waiting:
            return
        now = self._now()
        for job in list(self.waiting.values()):
            if not self._room(now):
                return
            if job.over or self._try(job):
                self.waiting.pop(job.id, None)

    def _room(self, now: float) -> bool:
        """Whether anybody could take anything: else there is no need to ask for each of those who wait."""
        roles: tuple[Role, ...] = ("prefill", "decode") if self._disaggregated else ("decode",)
        return all(any(not seat.full for seat in self._view.by_role(role, now)) for role in roles)

    def _try(self, job: Job) -> bool:
        now = self._now()
        if (seats := self._seats(job, now)) is None:
            return False
        self._send(job, *seats, now)
        return True

    def _seats(self, job: Job, now: float) -> tuple[Seat | None, Seat] | None:
        """Choose who is to prefill, if anybody, and who to decode; None if they are not there."""
        decode = choose(job.packed, self._view.by_role("decode", now), job.refused, self._chance)
        if decode is None or not self._disaggregated:
            return None if decode is None else (None, decode)
        prefill = choose(job.packed, self._view.by_role("prefill", now), job.refused, self._chance)
        if prefill is None or prefill.registration.bootstrap is None:
            return None
        return prefill, decode

    def _send(self, job: Job, prefill: Seat | None, decode: Seat, now: float) -> None:
        self.attempts += 1
        ttl, room = max(job.deadline - now, 0.001), self._chance.getrandbits(63)
        first, second = works(job, prefill, decode, out=self._incarnation, ttl=ttl, room=room)
        if prefill is not None and first is not None:
            job.prefill = self._ask(job, prefill, codec.to_msgpack(first))
        job.decode = self._ask(job, decode, codec.to_msgpack(second))
        job.trail.routed((str(decode),) if prefill is None else (str(prefill), str(decode)), job.attempt)

    def _ask(self, job: Job, seat: Seat, work: bytes) -> Leg:
        leg = Leg(seat)
        seat.own += 1
        self._at.setdefault(seat.incarnation, {})[job.id] = job
        slot = seat.registration.slot
        subject = self._work.get(slot)
        if subject is None:
            subject = self._subjects.work(self._alias, seat.registration.role, slot)
            self._work[slot] = subject
        self._asks.ask(subject, work, partial(self._answered, job, job.attempt, leg))
        return leg

    def _answered(self, job: Job, attempt: int, leg: Leg, outcome: bytes | Exception) -> None:
        if isinstance(outcome, bytes):
            leg.accepted = True
            if not job.over and job.attempt == attempt:
                job.trail.note("accepted", (str(leg.seat),), attempt=attempt)
            elif leg.withdrawn:
                # It has read the abort before the work, so it works on what nobody wants.
                self._aborts.tell(job.id, attempt, leg.seat)
            return
        if job.over or job.attempt != attempt or leg.done:
            if isinstance(outcome, SilentError) and not leg.done:
                self._aborts.tell(job.id, attempt, leg.seat)
            return
        where = str(leg.seat)
        if isinstance(outcome, ServiceError) and outcome.code not in BUSY:
            self._release(job, leg)
            self._journal.end(job, job.error(outcome.code, f"{where}: {outcome.message}"))
            return
        log.debug("request %s: %s does not take attempt %d: %s", job.id, where, attempt, outcome)
        if isinstance(outcome, NobodyThereError | ServiceError):
            self._release(job, leg)
        job.trail.note("refused", (where,), str(outcome), attempt)
        self._refused(job, leg)
        self.again(job)

    # What comes back.

    def receive(self, sender: str, items: list[Item]) -> None:
        """Take in a frame. Most of it are tokens of plain jobs: these are put aside until `read` is called.

        The loop runs once a token: it is most of what a processor has to do.
        """
        jobs, fresh = self._journal.jobs, self._fresh
        for item in items:
            job = jobs.get(item.request)
            if job is None or item.attempt != job.attempt:
                if item.finish is None:
                    self._aborts.stray(sender, item, self._view)
                continue
            leg = job.decode
            if leg is not None and leg.seat.incarnation == sender and not leg.done:
                if job.plain and item.finish is None and item.position == job.next:
                    leg.accepted = True
                    job.next += len(item.tokens) >> 2
                    job.aside.append(item.tokens)
                    fresh[item.request] = job
                else:
                    self._decoded(job, leg, item)
                continue
            leg = job.prefill
            if leg is not None and leg.seat.incarnation == sender and not leg.done and item.finish is not None:
                self._prefilled(job, leg, item, item.finish)

    def read(self) -> None:
        """Read what the frames have brought since the last time, and tell those who wait for it."""
        fresh, self._fresh = self._fresh, {}
        for job in fresh.values():
            if job.over:
                continue
            try:
                job.settle()
                if job.may_stop and job.stopped:
                    self._well(job, "stop")
                else:
                    job.sink.grown(job)
            except Exception:
                log.exception("request %s: what came for it cannot be read", job.id)
                self._journal.end(job, job.error(500, "the processor failed on this request"))

    def _decoded(self, job: Job, leg: Leg, item: Item) -> None:
        """Take in what decode has made for a job, where it is more than some tokens of a plain one."""
        leg.accepted = True
        if job.held is not None:
            return
        job.settle()
        if not (job.may_stop and job.stopped) and not self._took(job, leg, item):
            return
        finish = item.finish
        if job.may_stop and job.stopped:
            if finish is not None:
                self._release(job, leg)
            self._well(job, "stop")
            return
        if finish is None:
            self._fresh[job.id] = job
            return
        self._release(job, leg)
        if finish.reason == "stop" or finish.reason == "length":
            if job.prefill is None:
                job.cached = finish.cached_tokens
            elif not job.awaiting:
                # It has handed over, so it needs no abort; its own report may come a moment after this one.
                self._release(job, job.prefill)
            self._well(job, "stop" if finish.reason == "stop" else "length")
        else:
            self._failed(job, leg, finish)

    def _took(self, job: Job, leg: Leg, item: Item) -> bool:
        """Take in tokens with log-probabilities or text beside them, again, or not in their place; False ends that."""
        if item.logprobs is not None and not item.tokens:
            self._rank_prompt(job, item)
        if not item.tokens and item.said is None:
            return True
        ids = codec.unpack_tokens(item.tokens)
        ranked = None
        if job.asked.names is not None:
            if (ranked := _ranked(item, len(ids))) is None:
                self._journal.end(job, job.error(500, f"{leg.seat} gave no log-probabilities with its tokens"))
                return False
        again, have = job.next < job.anew, job.next
        if item.position > have:
            log.warning("request %s: tokens %d to %d are missing", job.id, have, item.position - 1)
            self.again(job)
            return False
        if item.position < have:
            ids = ids[have - item.position :]
            ranked = ranked and ranked[have - item.position :]
        if again:
            ends = item.finish is not None and item.finish.reason in ("stop", "length")
            if (known := job.compare(ids, ends=ends)) < 0:
                self._differs(job, leg)
                return False
            ids, ranked = ids[known:], ranked and ranked[known:]
        if again and not ids:
            return True
        if job.asked.chat is None:
            job.receive(ids, item.finish, ranked)
        elif item.said is None:
            self._journal.end(job, job.error(500, f"{leg.seat} gave no text with its tokens"))
            return False
        elif item.position >= have:
            job.hear(ids, item.said)
        return True

    def _differs(self, job: Job, leg: Leg) -> None:
        """End a job whose tokens, generated anew, are not those that its client has."""
        where = str(leg.seat)
        why = f"{where} generated it anew, and what came from token {job.next} on is not what had been sent"
        self._journal.end(job, job.error(500, f"an actor failed on this request; {why}"))

    def _well(self, job: Job, reason: Literal["stop", "length"]) -> None:
        """End a job that went well; one that still misses something of its prompt, when prefill has said it."""
        if job.awaiting and job.prefill is not None and not job.prefill.done:
            job.held = reason
        elif job.awaiting:
            self._journal.end(job, job.error(500, UNRANKED))
        else:
            self._journal.end(job, job.done(reason))

    def _rank_prompt(self, job: Job, item: Item) -> None:
        """Take in the log-probabilities of a prompt; where they are not what they should be, the job ends unwell."""
        ranked = _ranked(item, len(job.asked.prompt) - 1)
        if job.awaiting and ranked is not None:
            job.rank_prompt(ranked)

    def _prefilled(self, job: Job, leg: Leg, item: Item, finish: Finish) -> None:
        self._release(job, leg)
        if finish.reason in ("prefilled", "stop", "length"):
            job.cached = finish.cached_tokens
            if job.awaiting:
                self._rank_prompt(job, item)
                if job.held is not None:
                    self._well(job, job.held)
                    return
                job.sink.grown(job)
            self.retry()
        else:
            self._failed(job, leg, finish)

    def _failed(self, job: Job, leg: Leg, finish: Finish) -> None:
        where = str(leg.seat)
        if finish.reason == "abort" and self._now() >= job.deadline - 0.1:
            self._journal.end(job, job.error(408, f"the deadline of {job.asked.ttl:g} s has passed"))
        elif finish.reason == "error" and finish.code in BUSY:
            job.trail.note("refused", (where,), finish.message, job.attempt)
            self._refused(job, leg)
            self.again(job)
        elif finish.reason == "abort":
            self._refused(job, leg)
            self.crashed(job, where, f"gave it up: {finish.message or finish.reason}")
        else:
            self._judge(job, leg, job.error(finish.code or 500, f"{where}: {finish.message or finish.reason}"))

    def _judge(self, job: Job, leg: Leg, error: Error) -> None:
        """End a job with one side's error, unless it is the death of the other side that it tells of.

        A hand-over that breaks is felt by the survivor before anybody reports the death. So the other side is told to
        abort, as it must be in any case: if it answers it lives, and the error is the survivor's own.
        """
        other = job.prefill if leg is job.decode else job.decode
        if other is None or error.code < 500:
            self._journal.end(job, error)
            return
        attempt, seat = job.attempt, other.seat
        self._release(job, other)
        job.prefill = job.decode = None

        def judged(outcome: bytes | Exception) -> None:
            if job.over or job.attempt != attempt:
                return
            if isinstance(outcome, bytes):
                self._journal.end(job, error)
            else:
                job.refused[seat.incarnation] = seat.version
                self.crashed(job, str(seat), "does not answer")

        self._aborts.tell(job.id, attempt, seat, tries=1, told=judged)

    # Going on elsewhere.

    def lost(self, seat: Seat) -> None:
        """A seat's life is over: what it had of ours goes on elsewhere."""
        where = str(seat)
        for job in list(self._at.pop(seat.incarnation, {}).values()):
            there = [leg for leg in (job.prefill, job.decode) if leg is not None and leg.seat is seat]
            for leg in there:
                leg.done = True
            if any(leg.accepted for leg in there):
                self.crashed(job, where, "died")
            else:
                self.again(job)
        for job in list(self._fled.pop(seat.incarnation, {}).values()):
            # It had left for fear of this end, which counts no less than if it had stayed.
            job.crashes += (f"{where} died",)
            if len(job.crashes) >= CRASHES:
                self._give_up(job)

    def doubted(self, seat: Seat) -> None:
        """A seat is suspected to hang, or trusted again."""
        if seat.suspect:
            self._uneasy |= self._at.get(seat.incarnation, {})
            self._ease()
        else:
            self._fled.pop(seat.incarnation, None)

    def _ease(self) -> None:
        """Take jobs from seats that are suspected to hang, as far as there are others for them."""
        now = self._now()
        for job in list(self._uneasy.values()):
            legs = [leg for leg in (job.prefill, job.decode) if leg is not None and not leg.done and leg.seat.suspect]
            if job.over or not legs:
                self._uneasy.pop(job.id, None)
            elif not self._room(now):
                return
            elif why_no_other(job, self._max_payload) is None and self._seats(job, now) is not None:
                for leg in legs:
                    if leg.accepted:
                        self._fled.setdefault(leg.seat.incarnation, {})[job.id] = job
                where = str(legs[0].seat)
                log.info("request %s: %s may hang; going on elsewhere after %d tokens", job.id, where, len(job.tokens))
                job.trail.migrated((where,), "may hang", job.attempt)
                self.again(job)

    def crashed(self, job: Job, where: str, why: str) -> None:
        """Go on elsewhere after a fault of an actor; a request that has met two of them is perhaps their cause."""
        job.crashes += (f"{where} {why}",)
        if len(job.crashes) >= CRASHES:
            self._give_up(job)
        else:
            log.info("request %s: %s %s; going on elsewhere after %d tokens", job.id, where, why, len(job.tokens))
            job.trail.migrated((where,), why, job.attempt)
            self.again(job)

    def _give_up(self, job: Job) -> None:
        self._journal.end(job, job.error(500, poison.as_message(job.crashes)))

    def again(self, job: Job) -> None:
        """Begin the next attempt: from the prompt and the tokens so far, or anew where these would not be counted."""
        self._withdraw(job)
        self._uneasy.pop(job.id, None)
        job.attempt += 1
        if (error := why_no_other(job, self._max_payload)) is not None:
            self._journal.end(job, error)
            return
        if len(job.tokens) >= job.asked.sampling.max_tokens:
            self._journal.end(job, job.done("length"))
            return
        job.begin_attempt()
        job.resumed = job.resumed or (bool(job.tokens) and job.asked.sampling.temperature > 0)
        if not self._try(job):
            job.trail.note("queued", why="no actor can take it now", attempt=job.attempt)
            self.waiting[job.id] = job

    def over(self, job: Job) -> None:
        """A job has ended: free its seats, and stop what is still being done for it."""
        self.waiting.pop(job.id, None)
        self._uneasy.pop(job.id, None)
        for there in self._fled.values():
            there.pop(job.id, None)
        self._withdraw(job)
        if self.waiting:
            self.retry()

    def _refused(self, job: Job, leg: Leg) -> None:
        """Note that a seat has refused a job: it is asked again only when something has changed there."""
        self._withdraw(job)
        job.refused[leg.seat.incarnation] = leg.seat.version

    def _withdraw(self, job: Job) -> None:
        for leg in (job.prefill, job.decode):
            if leg is not None and not leg.done:
                self._release(job, leg)
                leg.withdrawn = True
                self._aborts.tell(job.id, job.attempt, leg.seat)
        job.prefill = job.decode = None

    def _release(self, job: Job, leg: Leg) -> None:
        if leg.done:
            return
        leg.done = True
        there = self._at.get(leg.seat.incarnation)
        if there is not None:
            there.pop(job.id, None)
        self._view.freed(leg.seat)


def _ranked(item: Item, count: int) -> list[codec.Ranked] | None:
    """Read the log-probabilities of an item's tokens, or None if they are not there."""
    try:
        return codec.unpack_logprobs(item.logprobs or b"", count)
    except ValueError:
        return None
