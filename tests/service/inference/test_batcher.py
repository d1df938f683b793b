import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import (
    DeadlineExceeded,
    DeviceLost,
    DeviceOutOfMemory,
    InferenceFailed,
    NonFiniteOutput,
    NotReady,
)
from service.inference.batch_execution import Inputs, Rows, Work
from service.inference.batch_selection import Rules, Selection, select_batch, split_sorted
from service.inference.batcher import Batcher
from service.lanes import Lane
from service.model.arrays import Vectors
from service.monitoring.metrics import Metrics
from tests.support.classifying import until

LIMIT = 8
NOW = 100.0


@dataclass(frozen=True)
class Entry:
    """An entry as `select_batch` sees it."""

    number: int
    group: str
    size: int
    lane: Lane
    deadline: float
    cancelled: bool
    length: int = 1


def entries(**fixed: Any) -> st.SearchStrategy[list[Entry]]:
    """Numbered entries of all sorts, some fields fixed."""
    entry = st.builds(
        Entry,
        number=st.just(0),
        group=st.sampled_from(["image", "text", "other image"]),
        size=st.integers(1, LIMIT),
        lane=st.sampled_from(Lane),
        deadline=st.sampled_from([NOW - 1, NOW, NOW + 1, float("inf")]),
        cancelled=st.booleans(),
        length=st.sampled_from([1, 1, 1, 9, 16, 77]),
    )
    return st.lists(entry, max_size=30).map(
        lambda drawn: [Entry(**{**vars(one), **fixed, "number": number}) for number, one in enumerate(drawn)]
    )


def select(waiting: Sequence[Entry], passed_over: int = 0, rules: Rules = Rules(LIMIT)) -> Selection[Entry]:  # noqa: B008 - frozen
    """Select with the limits of these tests."""
    return select_batch(waiting, rules=lambda _: rules, now=NOW, passed_over=passed_over, background_every=4)


def make(number: int, group: str = "image", size: int = 1, lane: Lane = Lane.INTERACTIVE, length: int = 1) -> Entry:
    """One live entry."""
    return Entry(number, group, size, lane, float("inf"), cancelled=False, length=length)


def padding(batch: Sequence[Entry]) -> int:
    """Return the units that are computed for padding alone."""
    return sum(entry.size for entry in batch) * max(entry.length for entry in batch) - sum(
        entry.size * entry.length for entry in batch
    )


RULES = st.builds(
    Rules,
    limit=st.just(LIMIT),
    spare=st.sampled_from([0.0, 5.0, 100.0, float("inf")]),
    background_limit=st.sampled_from([None, 2]),
)


@given(entries(), st.integers(0, 5), RULES)
def test_every_entry_is_selected_dropped_or_left_exactly_once(
    waiting: list[Entry], passed_over: int, rules: Rules
) -> None:
    """Nothing is lost and nothing is done twice."""
    selection = select(waiting, passed_over, rules)
    assert sorted(entry.number for entry in (*selection.batch, *selection.dropped, *selection.left)) == list(
        range(len(waiting))
    )


@given(entries(), st.integers(0, 5), RULES)
def test_a_batch_is_of_one_group_and_within_the_limit(waiting: list[Entry], passed_over: int, rules: Rules) -> None:
    """Models and kinds of work are never mixed, and sizes never add up beyond the limit."""
    batch = select(waiting, passed_over, rules).batch
    assert len({entry.group for entry in batch}) <= 1
    assert sum(entry.size for entry in batch) <= LIMIT


@given(entries(), st.integers(0, 5), RULES)
def test_there_is_a_batch_at_once_wherever_something_alive_waits(
    waiting: list[Entry], passed_over: int, rules: Rules
) -> None:
    """Nothing is held back in the hope of more, and the oldest of the lane whose turn it is goes."""
    selection = select(waiting, passed_over, rules)
    of_lane = [entry for entry in waiting if entry not in selection.dropped and entry.lane is selection.lane]
    assert bool(selection.batch) == (len(selection.dropped) < len(waiting))
    assert selection.batch == () or of_lane[0] in selection.batch


@given(entries(group="text", size=1), st.floats(0, 200), st.data())
def test_no_batch_costs_more_than_its_parts_would(waiting: list[Entry], overhead: float, data: st.DataObject) -> None:
    """Texts of very different length are not padded to one length where two batches are cheaper."""
    batch = select(waiting, rules=Rules(LIMIT, spare=overhead)).batch
    part = [entry for entry in batch if data.draw(st.booleans())]
    rest = [entry for entry in batch if entry not in part]

    def cost(entries: Sequence[Entry]) -> float:
        return len(entries) * max(entry.length for entry in entries) + overhead if entries else 0.0

    assert cost(batch) <= cost(part) + cost(rest) + 1e-6


@given(entries(group="text"), st.floats(0, 200))
def test_only_length_and_room_let_a_later_entry_go_first(waiting: list[Entry], overhead: float) -> None:
    """What is passed over although there was room would have cost more in this batch than in one of its own."""
    selection = select(waiting, rules=Rules(LIMIT, spare=overhead))
    for left in selection.left:
        earlier = [entry for entry in selection.batch if entry.number < left.number]
        later = [entry for entry in selection.batch if entry.number > left.number and entry.lane is left.lane]
        if later and left.lane is selection.lane:
            assert padding([*earlier, left]) > overhead


@given(entries(length=1), st.integers(0, 5))
def test_order_holds_within_a_lane(waiting: list[Entry], passed_over: int) -> None:
    """No entry is overtaken by a later one of its own lane and group, and what is left stays in order."""
    selection = select(waiting, passed_over)
    numbers = [entry.number for entry in selection.left]
    assert numbers == sorted(numbers)
    for lane in Lane:
        of_lane = [entry.number for entry in selection.batch if entry.lane is lane]
        assert of_lane == sorted(of_lane)
        if of_lane:
            passed = [
                entry for entry in selection.left if entry.lane is lane and entry.group == selection.batch[0].group
            ]
            assert all(entry.number > of_lane[-1] for entry in passed)


@given(entries(), st.integers(0, 5), RULES)
def test_cancelled_and_overdue_entries_are_dropped(waiting: list[Entry], passed_over: int, rules: Rules) -> None:
    """Cancelled and overdue entries never reach the device; all others are kept."""
    selection = select(waiting, passed_over, rules)
    assert all(entry.cancelled or entry.deadline <= NOW for entry in selection.dropped)
    assert not any(entry.cancelled or entry.deadline <= NOW for entry in (*selection.batch, *selection.left))


@given(entries(cancelled=False, deadline=float("inf")), st.integers(2, 6), RULES)
def test_everything_is_done_in_the_end_and_neither_lane_starves(waiting: list[Entry], every: int, rules: Rules) -> None:
    """While both lanes wait, background has one turn in `every`, the interactive lane all others."""
    passed_over = 0
    turns_without_background = 0
    while waiting:
        both = {entry.lane for entry in waiting} == set(Lane)
        selection = select_batch(
            waiting, rules=lambda _: rules, now=NOW, passed_over=passed_over, background_every=every
        )
        assert selection.batch
        if both:
            oldest = next(entry for entry in waiting if entry.lane is Lane.BACKGROUND)
            turns_without_background = 0 if oldest in selection.batch else turns_without_background + 1
            assert turns_without_background < every
            if selection.lane is Lane.BACKGROUND:
                assert passed_over == every - 1
        passed_over = selection.passed_over
        waiting = list(selection.left)


def test_interactive_work_goes_first() -> None:
    """An interactive entry overtakes background work that came earlier, and is not slowed by being mixed with it."""
    selection = select([make(0, lane=Lane.BACKGROUND), make(1)])
    assert [entry.number for entry in selection.batch] == [1]


def test_a_background_turn_takes_interactive_entries_along() -> None:
    """Room that a background batch leaves is not wasted."""
    selection = select([make(0, lane=Lane.BACKGROUND), make(1)], passed_over=3)
    assert [entry.number for entry in selection.batch] == [0, 1]


def test_a_background_batch_is_short_where_the_rules_say_so() -> None:
    """Its own entries go up to its limit; interactive ones may still fill the rest."""
    rules = Rules(LIMIT, background_limit=2)
    bulk = [make(number, lane=Lane.BACKGROUND) for number in range(5)]
    alone = select(bulk, rules=rules)
    assert ([0, 1], True) == ([entry.number for entry in alone.batch], alone.full)
    both = select([*bulk, *(make(number) for number in range(5, 20))], passed_over=3, rules=rules)
    assert [0, 1, 5, 6, 7, 8, 9, 10] == [entry.number for entry in both.batch]


def test_an_entry_beyond_the_limit_goes_alone() -> None:
    """Limits may become smaller while it waits; it must not block the device for ever."""
    assert [0] == [entry.number for entry in select([make(0, size=LIMIT + 1), make(1)]).batch]


def test_texts_of_like_length_go_together_past_one_that_is_not() -> None:
    """The long text waits for the next batch, where it is the oldest."""
    waiting = [make(0, length=9), make(1, length=77), make(2, length=10)]
    selection = select(waiting, rules=Rules(LIMIT, spare=20))
    assert [0, 2] == [entry.number for entry in selection.batch]
    assert [1] == [entry.number for entry in select(selection.left, rules=Rules(LIMIT, spare=20)).batch]


@given(st.lists(st.integers(1, 77), max_size=60).map(sorted), st.floats(0, 300), st.integers(1, 16))
def test_sorted_rows_are_cut_where_padding_would_cost_more(lengths: list[int], spare: float, limit: int) -> None:
    """Every row is in one part, in order; no part is above the limit or wastes more than a batch costs."""
    parts = [lengths[part] for part in split_sorted(lengths, Rules(limit, spare=spare))]
    assert lengths == [length for part in parts for length in part]
    assert all(0 < len(part) <= limit and len(part) * part[-1] - sum(part) <= spare for part in parts)


def test_the_oldest_decides_the_group() -> None:
    """A busy kind of work cannot hold up another for ever."""
    selection = select([make(0, "text"), *(make(number) for number in range(1, 20))])
    assert [entry.number for entry in selection.batch] == [0]


@pytest.mark.parametrize(("sizes", "full"), [([7], False), ([8], True), ([5, 4], True), ([4, 3], False)])
def test_a_batch_is_full_when_nothing_more_would_fit(sizes: list[int], full: bool) -> None:
    """Only such a batch is worth preparing ahead of time."""
    assert select([make(number, size=size) for number, size in enumerate(sizes)]).full is full


class Device:
    """A kind of work that doubles its inputs, keeps a record, and can be held."""

    def __init__(self, kind: Any = "image", model: str = "m") -> None:
        self.work = Work(model, kind, self.collate, self.run)
        self.batches: list[list[float]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.error: BaseException | None = None
        self.poison: float | None = None
        self.answers: int | None = None
        self.memory: int | None = None

    def collate(self, rows: Sequence[Rows]) -> Inputs:
        """Rows one after the other."""
        return np.concatenate([np.asarray(part, np.float32) for part in rows])

    def run(self, inputs: Inputs) -> Vectors:
        """Twice the inputs."""
        self.threads.add(threading.get_ident())
        self.batches.append(inputs[:, 0].tolist())
        self.started.set()
        self.gate.wait()
        if self.error is not None:
            raise self.error
        if self.memory is not None and len(inputs) > self.memory:
            raise DeviceOutOfMemory("too large")
        if self.poison in inputs[:, 0]:
            raise NonFiniteOutput("not finite")
        return np.asarray(inputs * 2, np.float32)[: self.answers]


def rows(*values: float) -> Inputs:
    """float32 `[values, 1]`."""
    return np.array([[value] for value in values], np.float32)


@pytest.fixture
async def batcher() -> AsyncIterator[Batcher]:
    """A scheduler that closes in the end."""
    batcher = Batcher("cpu", Metrics(), max_batch=4)
    yield batcher
    await batcher.close()


async def until_started(device: Device) -> None:
    """Wait until a batch is on the device."""
    assert await asyncio.to_thread(device.started.wait, 60)


async def settle() -> None:
    """Let all tasks go as far as they can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def hold(batcher: Batcher, device: Device, value: float = 0) -> "asyncio.Task[Any]":
    """Occupy the device until its gate is opened."""
    device.gate.clear()
    task = asyncio.create_task(batcher.submit(device.work, rows(value)))
    await until_started(device)
    return task


async def test_concurrent_requests_share_a_batch(batcher: Batcher) -> None:
    """What waits while the device is busy goes together, up to the limit, and everyone gets the own answer."""
    device = Device()
    first = await hold(batcher, device)
    others = [asyncio.create_task(batcher.submit(device.work, rows(value))) for value in range(1, 7)]
    await settle()
    device.gate.set()
    done = await asyncio.gather(first, *others)
    assert [one.vectors.tolist() for one in done] == [[[2.0 * value]] for value in range(7)]
    assert device.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert threading.get_ident() not in device.threads
    assert all(one.queue_s >= 0 and one.run_s >= 0 for one in done)


async def test_an_engine_that_raises_answers_every_waiter(batcher: Batcher) -> None:
    """A failure of the model reaches all of its batch as InferenceFailed, and the next batch is served."""
    device = Device()
    first = await hold(batcher, device)
    others = [asyncio.create_task(batcher.submit(device.work, rows(value))) for value in (1, 2)]
    device.error = ValueError("a secret of the runtime")
    device.gate.set()
    for answer in await asyncio.gather(first, *others, return_exceptions=True):
        assert isinstance(answer, InferenceFailed)
        assert "secret" not in answer.detail
    device.error = None
    assert (await batcher.submit(device.work, rows(5))).vectors.tolist() == [[10]]


async def test_a_worker_that_is_told_to_exit_answers_every_waiter(batcher: Batcher) -> None:
    """Even SystemExit in the device's thread leaves no caller waiting."""
    device = Device()
    device.error = SystemExit(1)
    with pytest.raises(InferenceFailed):
        await batcher.submit(device.work, rows(1))
    device.error = None
    assert batcher.healthy
    assert len((await batcher.submit(device.work, rows(1))).vectors) == 1


async def test_a_device_whose_threads_are_gone_answers_every_waiter() -> None:
    """Where the thread cannot be had at all, the scheduler's end is everyone's answer, and health says so."""
    batcher = Batcher("cpu", Metrics(), max_batch=4)
    device = Device()
    batcher._runner.shutdown()
    answers = await asyncio.gather(
        *(batcher.submit(device.work, rows(value)) for value in range(6)), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [InferenceFailed] * 6
    with pytest.raises(InferenceFailed):
        await batcher.submit(device.work, rows(1))
    assert not batcher.healthy


async def test_one_input_without_a_finite_answer_spares_its_neighbours(batcher: Batcher) -> None:
    """A batch that is not finite is run again one by one."""
    device = Device()
    device.poison = 2
    first = await hold(batcher, device)
    others = [asyncio.create_task(batcher.submit(device.work, rows(value))) for value in (1, 2, 3)]
    await settle()
    device.gate.set()
    done = await asyncio.gather(first, *others, return_exceptions=True)
    assert [isinstance(one, NonFiniteOutput) for one in done] == [False, False, True, False]


async def test_a_wrong_number_of_vectors_is_a_failure(batcher: Batcher) -> None:
    """Answers are never shifted from one request to another."""
    device = Device()
    device.answers = 1
    with pytest.raises(InferenceFailed):
        await batcher.submit(device.work, rows(1, 2))


async def test_a_cancelled_request_never_reaches_the_device(batcher: Batcher) -> None:
    """Its entry goes at once, and gives its room back."""
    device = Device()
    left = []
    first = await hold(batcher, device)
    doomed = asyncio.create_task(batcher.submit(device.work, rows(1), on_dequeued=lambda: left.append(1)))
    kept = asyncio.create_task(batcher.submit(device.work, rows(2)))
    await settle()
    doomed.cancel()
    await settle()
    assert left == [1]
    device.gate.set()
    await asyncio.gather(first, kept)
    assert doomed.cancelled()
    assert device.batches == [[0], [2]]


async def test_an_overdue_request_never_reaches_the_device(batcher: Batcher) -> None:
    """Its deadline passed while the device was busy: DeadlineExceeded."""
    device = Device()
    first = await hold(batcher, device)
    deadline = time.monotonic() + 0.01
    late = asyncio.create_task(batcher.submit(device.work, rows(1), deadline=deadline))
    await settle()
    await until(lambda: time.monotonic() > deadline)
    device.gate.set()
    await first
    with pytest.raises(DeadlineExceeded):
        await late
    assert device.batches == [[0]]


async def test_a_batch_prepared_ahead_is_checked_again_before_it_runs(batcher: Batcher) -> None:
    """Entries cancelled after they were put together with others are still dropped."""
    device = Device()
    first = await hold(batcher, device)
    others = [asyncio.create_task(batcher.submit(device.work, rows(value))) for value in (1, 2, 3, 4)]
    await settle()
    await until(lambda: batcher._waiting == [])  # full: now prepared
    others[1].cancel()
    device.gate.set()
    await asyncio.gather(first, *others, return_exceptions=True)
    assert device.batches == [[0], [1, 3, 4]]


async def test_interactive_work_overtakes_background_work_at_the_next_batch(batcher: Batcher) -> None:
    """However much background work waits, an interactive request is next."""
    device, texts = Device(), Device("text")
    first = await hold(batcher, device)
    bulk = [asyncio.create_task(batcher.submit(texts.work, rows(1, 2, 3, 4), lane=Lane.BACKGROUND)) for _ in range(20)]
    await settle()
    quick = asyncio.create_task(batcher.submit(device.work, rows(9)))
    await settle()
    device.gate.set()
    await asyncio.gather(first, quick)
    assert len(texts.batches) <= 1
    await asyncio.gather(*bulk)
    assert len(texts.batches) == 20


async def test_models_are_never_mixed(batcher: Batcher) -> None:
    """Two models on one device take turns in one thread."""
    one, two = Device(), Device(model="n")
    first = await hold(batcher, one)
    tasks = [
        asyncio.create_task(batcher.submit(device.work, rows(value)))
        for value, device in enumerate([one, two, one, two])
    ]
    await settle()
    one.gate.set()
    await asyncio.gather(first, *tasks)
    assert (one.batches, two.batches) == ([[0], [0, 2]], [[1, 3]])
    assert one.threads == two.threads


async def test_closing_runs_what_waits_and_refuses_what_comes() -> None:
    """Nothing that was accepted is lost."""
    batcher = Batcher("cpu", Metrics(), max_batch=4)
    device = Device()
    tasks = [await hold(batcher, device)]
    tasks += [asyncio.create_task(batcher.submit(device.work, rows(value))) for value in range(1, 10)]
    await settle()
    closing = asyncio.create_task(batcher.close())
    await settle()
    with pytest.raises(NotReady):
        await batcher.submit(device.work, rows(99))
    device.gate.set()
    await closing
    assert len(await asyncio.gather(*tasks)) == 10


async def test_abandoning_answers_whoever_waits() -> None:
    """If the device hangs, waiting callers get an error."""
    batcher = Batcher("cpu", Metrics(), max_batch=4)
    device = Device()
    tasks = [await hold(batcher, device)]
    tasks += [asyncio.create_task(batcher.submit(device.work, rows(value))) for value in (1, 2)]
    await settle()
    batcher.abandon()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    device.gate.set()
    assert [type(answer) for answer in answers] == [NotReady] * 3


async def test_the_gauge_of_what_waits_returns_to_zero() -> None:
    """However entries leave: run, cancelled, overdue or failed."""
    metrics = Metrics()
    batcher = Batcher("cpu", metrics, max_batch=4)
    device = Device()
    tasks = [await hold(batcher, device)]
    tasks += [asyncio.create_task(batcher.submit(device.work, rows(value))) for value in range(5)]
    tasks.append(asyncio.create_task(batcher.submit(device.work, rows(1), deadline=time.monotonic())))
    await settle()
    tasks[2].cancel()
    device.gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    await batcher.close()
    assert metrics.registry.get_sample_value("anyclass_waiting", {"model": "m", "kind": "image"}) == 0
    for reason in ("cancelled", "overdue"):
        assert metrics.registry.get_sample_value("anyclass_dropped_total", {"kind": "image", "reason": reason}) == 1


async def test_an_entry_larger_than_a_batch_is_a_bug_of_the_caller(batcher: Batcher) -> None:
    """It could never run."""
    with pytest.raises(ValueError, match="1 to 4 rows"):
        await batcher.submit(Device().work, rows(1, 2, 3, 4, 5))


async def test_a_batch_too_large_for_the_memory_is_halved_once(batcher: Batcher) -> None:
    """Everyone gets the own answer all the same."""
    device = Device()
    device.memory = 2
    first = await hold(batcher, device)
    others = [asyncio.create_task(batcher.submit(device.work, rows(*values))) for values in ((1, 2, 3), (4,))]
    await settle()
    device.gate.set()
    done = await asyncio.gather(first, *others)
    assert [[[0]], [[2], [4], [6]], [[8]]] == [one.vectors.tolist() for one in done]
    assert [[0], [1, 2, 3, 4], [1, 2], [3, 4]] == device.batches


@pytest.mark.parametrize("values", [(1, 2, 3, 4), (1,)])
async def test_memory_too_small_for_half_a_batch_is_an_error(batcher: Batcher, values: tuple[float, ...]) -> None:
    """It is tried once more and not for ever; the device goes on with what comes next."""
    device = Device()
    device.memory = len(values) // 4
    with pytest.raises(DeviceOutOfMemory):
        await batcher.submit(device.work, rows(*values))
    assert len(device.batches) <= 2
    device.memory = None
    assert batcher.healthy
    assert [[10]] == (await batcher.submit(device.work, rows(5))).vectors.tolist()


async def test_a_lost_device_is_unhealthy_and_takes_nothing_more(batcher: Batcher) -> None:
    """So that the process is restarted."""
    device = Device()
    device.error = DeviceLost("gone")
    states = [batcher.healthy]
    with pytest.raises(DeviceLost):
        await batcher.submit(device.work, rows(1))
    assert [True, False] == [*states, batcher.healthy]
    with pytest.raises(InferenceFailed):
        await batcher.submit(device.work, rows(1))
    assert 1 == len(device.batches)


async def test_a_work_has_a_limit_of_its_own(batcher: Batcher) -> None:
    """Texts may go in larger batches than images."""
    device = Device()
    work = Work("m", "text", device.collate, device.run, max_batch=6)
    assert 6 == len((await batcher.submit(work, rows(*range(6)))).vectors)
    with pytest.raises(ValueError, match="1 to 6 rows"):
        await batcher.submit(work, rows(*range(7)))


async def test_when_new_work_would_be_done_follows_from_what_waits_and_runs(batcher: Batcher) -> None:
    """Nothing is known before the first batch; then every row that waits, of any work, adds to it."""
    device, texts = Device(), Device("text")
    assert batcher.completion_s(device.work, 1, Lane.INTERACTIVE) is None
    for one in (device, texts):
        await batcher.submit(one.work, rows(1))
    idle = batcher.completion_s(device.work, 1, Lane.INTERACTIVE)
    assert idle is not None
    assert 0 == batcher.completion_s(device.work, 0, Lane.INTERACTIVE)
    first = await hold(batcher, device)
    others = [asyncio.create_task(batcher.submit(texts.work, rows(value))) for value in range(3)]
    await settle()
    busy = batcher.completion_s(device.work, 1, Lane.INTERACTIVE)
    assert busy is not None
    assert busy > idle
    device.gate.set()
    await asyncio.gather(first, *others)
    assert 0 == batcher.completion_s(device.work, 0, Lane.INTERACTIVE)
