"""The balance: at most t pairs a query for any data, MetaCLIP's expectation, the same result in any order."""

import multiprocessing
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_export.curation.balance import Balance, BalanceSettings, Method
from model_export.curation.balancing import Passes, RunTasks, count_matches, plan_balance
from model_export.curation.stage import run_stage
from model_export.errors import CurationError
from tests.support.matched import counts, lists, matched_pairs, write_shards, zipf_pairs

QUERIES = 12


def planned(
    folder: Path, table: pa.Table, how: BalanceSettings, *, cuts: tuple[int, ...] = (), run_tasks: RunTasks = map
) -> Balance:
    """Count and plan over shards of a table."""
    passes = Passes(write_shards(folder, table, cuts), run_tasks)
    return plan_balance(passes, how, count_matches(passes, QUERIES))


def rarest(table: pa.Table, matched: np.ndarray) -> list[int | None]:
    """Return the rarest query of each pair, found one by one; of equals the lower id."""
    return [min(each, key=lambda query: (matched[query], query), default=None) for each in lists(table)]


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """Draw pairs, some without queries, some with an id that others have."""
    one = st.lists(st.integers(0, QUERIES - 1), max_size=4, unique=True).map(sorted)
    queries = draw(st.lists(st.one_of(st.none(), one), max_size=60))
    ids = draw(st.lists(st.integers(0, 200), min_size=len(queries), max_size=len(queries)))
    return matched_pairs(queries, [str(each) for each in ids])


@given(table=tables(), most=st.integers(1, 8), seed=st.integers(0, 2**64 - 1), data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_query_has_more_than_t(table: pa.Table, most: int, seed: int, data: st.DataObject, tmp_path: Path) -> None:
    """For any data, a query keeps at most t of the pairs charged to it: all, or exactly t, if no id repeats.

    Neither the order of the pairs nor their shards matter.
    """
    how = BalanceSettings(most=most, seed=seed)
    result = run_stage(planned(tmp_path, table, how), table)
    matched = counts(table, QUERIES)
    charged = Counter(each for each in rarest(table, matched) if each is not None)
    kept = Counter(rarest(result.kept, matched))
    assert all(kept[query] <= most for query in charged)
    if len(set(table["id"].to_pylist())) == table.num_rows:
        assert {query: min(most, number) for query, number in charged.items()} == kept
    assert result.dropped.get("unmatched", 0) == lists(table).count([])
    order = data.draw(st.permutations(range(table.num_rows)))
    shuffled = table.take(pa.array(order, pa.int64()))
    cut = data.draw(st.integers(0, table.num_rows))
    again = run_stage(planned(tmp_path, shuffled, how, cuts=(cut,)), shuffled)
    assert sorted(result.kept["id"].to_pylist()) == sorted(again.kept["id"].to_pylist())
    assert result.dropped == again.dropped


@pytest.mark.parametrize("method", list(Method))
def test_the_same_pairs_for_any_number_of_processes(method: Method, tmp_path: Path) -> None:
    """One process and two, one shard and five, plan alike; tables of any size give the same rows."""
    table = zipf_pairs(3_000, QUERIES, 1)
    how = BalanceSettings(method, most=100, seed=7)
    one = planned(tmp_path, table, how)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        many = planned(tmp_path, table, how, cuts=(10, 700, 701, 2_500), run_tasks=pool.imap_unordered)
    assert one.digest == many.digest
    whole = one.run(table).kept
    parts = [many.run(table.slice(start, 271)).kept for start in range(0, 3_000, 271)]
    assert whole.to_pylist() == pa.concat_tables(parts).to_pylist()
    assert 0 < whole.num_rows < 3_000


def test_queries_below_the_cap_lose_nothing(tmp_path: Path) -> None:
    """With t above every count, only pairs without queries go."""
    table = zipf_pairs(2_000, QUERIES, 2)
    for method in Method:
        result = planned(tmp_path, table, BalanceSettings(method, most=2_000)).run(table)
        assert {"unmatched": lists(table).count([])} == result.dropped


def test_a_large_query_keeps_exactly_t(tmp_path: Path) -> None:
    """The window around the bound finds the t lowest coins of many, at both ends of the range too."""
    table = matched_pairs([[3]] * 20_000)
    for most in (1, 19, 5_000, 19_999, 20_000):
        assert most == planned(tmp_path, table, BalanceSettings(most=most)).run(table).kept.num_rows


def test_ids_that_repeat_keep_at_most_t(tmp_path: Path) -> None:
    """Equal coins fall outside the window or tie at the bound; the cap holds."""
    table = matched_pairs([[3]] * 1_000, ["same"] * 995 + list("abcde"))
    for most in (1, 3, 6, 900):
        assert planned(tmp_path, table, BalanceSettings(most=most)).run(table).kept.num_rows <= most


def test_independent_keeps_what_metaclip_expects() -> None:
    """Pairs kept are within three standard deviations of the sum of their probabilities, for ten seeds."""
    table = zipf_pairs(20_000, QUERIES, 3)
    matched = counts(table, QUERIES)
    most = 500
    pairs = lists(table)
    odds = np.array([1 - np.prod(1 - np.minimum(1, most / matched[each])) if each else 0 for each in pairs])
    spread = odds * (1 - odds)
    members = [np.array([query in each for each in pairs]) for query in range(QUERIES)]
    for seed in range(10):
        plan = plan_balance(Passes(()), BalanceSettings(Method.INDEPENDENT, most, seed), matched)
        kept = plan.run(table).kept
        assert abs(kept.num_rows - odds.sum()) < 3 * np.sqrt(spread.sum())
        # Each query by itself: 12 queries and 10 seeds are many tries, so the limit is wider.
        stays = counts(kept, QUERIES)
        for query, mine in enumerate(members):
            assert abs(stays[query] - odds[mine].sum()) < 4 * np.sqrt(spread[mine].sum()) + 1


def test_the_seed_decides(tmp_path: Path) -> None:
    """Another seed keeps other pairs, and has another digest; the same seed the same."""
    table = zipf_pairs(2_000, QUERIES, 4)
    for method in Method:
        plans = [planned(tmp_path, table, BalanceSettings(method, 50, seed)) for seed in (1, 1, 2)]
        rows = [plan.run(table).kept["id"].to_pylist() for plan in plans]
        assert rows[0] == rows[1] != rows[2]
        assert plans[0].digest == plans[1].digest != plans[2].digest


def test_every_drop_has_a_reason(tmp_path: Path) -> None:
    """Reports tell pairs without a query from pairs over the cap."""
    table = matched_pairs([[0], [0], [0], None, [], [1]])
    cap = run_stage(planned(tmp_path, table, BalanceSettings(most=1)), table)
    assert {"over cap": 2, "unmatched": 2} == cap.dropped
    independent = run_stage(planned(tmp_path, table, BalanceSettings(Method.INDEPENDENT, most=1)), table)
    assert 2 == independent.dropped["unmatched"]
    assert set(independent.dropped) <= {"sampled out", "unmatched"}


def test_the_stage_can_be_pickled(tmp_path: Path) -> None:
    """Worker processes get a copy that keeps the same pairs."""
    table = zipf_pairs(500, QUERIES, 5)
    plan = planned(tmp_path, table, BalanceSettings(most=20))
    copy = pickle.loads(pickle.dumps(plan))  # noqa: S301 - our own bytes
    assert plan.digest == copy.digest
    assert plan.run(table).kept.equals(copy.run(table).kept)


def test_an_empty_table_is_balanced(tmp_path: Path) -> None:
    """A shard without rows is no error."""
    table = matched_pairs([])
    for method in Method:
        assert 0 == planned(tmp_path, table, BalanceSettings(method)).run(table).kept.num_rows


def test_wrong_settings_are_refused() -> None:
    """The message names the value and its limits."""
    with pytest.raises(CurationError, match="at most 0 pairs a query: must be at least 1"):
        BalanceSettings(most=0)
    with pytest.raises(CurationError, match="seed -1"):
        BalanceSettings(seed=-1)


def test_pairs_of_another_list_are_refused(tmp_path: Path) -> None:
    """A query beyond the list names the file; so does a file without matches."""
    names = write_shards(tmp_path, matched_pairs([[0], [QUERIES]]))
    with pytest.raises(CurationError, match=r"00000\.parquet: query 12 is not in the list of 12"):
        count_matches(Passes(names), QUERIES)
    names = write_shards(tmp_path, matched_pairs([[0]]).drop_columns(["queries"]))
    with pytest.raises(CurationError, match=r"no column 'queries'; run curate match"):
        count_matches(Passes(names), QUERIES)
