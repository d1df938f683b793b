import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidScoring, NonFiniteOutput
from service.model.arrays import Vectors
from service.model.manifest import SigmoidScoring, SoftmaxScoring
from service.model.scoring import check_scoring, class_vectors, cosines, rank, scores

SOFTMAX = SoftmaxScoring(logit_scale=100.0)
SIGMOID = SigmoidScoring(logit_scale=10.0, logit_bias=-5.0)


def _unit(*shape: int, seed: int = 0) -> Vectors:
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors


def test_a_class_vector_is_the_normalised_mean_of_its_prompts() -> None:
    """Label-major prompts, unit length out."""
    prompts = _unit(6, 8)
    vectors = class_vectors(prompts, 3)
    assert (2, 8) == vectors.shape
    assert np.float32 == vectors.dtype
    mean = prompts[3:].mean(axis=0)
    np.testing.assert_allclose(mean / np.linalg.norm(mean), vectors[1], rtol=1e-6)


def test_a_class_vector_does_not_depend_on_its_neighbours() -> None:
    """Otherwise a cached vector would differ from one computed in another request."""
    prompts = _unit(400, 64)
    together = class_vectors(prompts, 4)
    alone = np.concatenate([class_vectors(prompts[i : i + 4], 4) for i in range(0, 400, 4)])
    assert (together == alone).all()


def test_prompts_that_cancel_out_are_not_turned_into_noise() -> None:
    """Opposite embeddings, and NaN, have no direction."""
    vector = _unit(1, 8)
    with pytest.raises(NonFiniteOutput):
        class_vectors(np.concatenate([vector, -vector]), 2)
    with pytest.raises(NonFiniteOutput):
        class_vectors(np.full((2, 8), np.nan, np.float32), 1)


def test_uneven_prompts_are_a_mistake_of_the_caller() -> None:
    """Every label has every template."""
    with pytest.raises(ValueError, match="not a multiple"):
        class_vectors(_unit(5, 4), 2)


def test_cosines_are_products_of_unit_vectors() -> None:
    """For one image and for a batch."""
    images, matrix = _unit(3, 8, seed=1), _unit(5, 8, seed=2)
    assert (3, 5) == cosines(images, matrix).shape
    np.testing.assert_allclose(matrix @ images[0], cosines(images[0], matrix), rtol=1e-4)
    np.testing.assert_allclose(np.ones(5), np.diag(cosines(matrix, matrix)), rtol=1e-6)


def test_softmax_follows_the_definition() -> None:
    """Scale, temperature, sum of one."""
    values = np.array([0.30, 0.28, 0.10], np.float32)
    expected = [math.exp(100 * float(v) / 2) for v in values]
    answer = scores(values, SOFTMAX, temperature=2.0)
    np.testing.assert_allclose([e / sum(expected) for e in expected], answer, rtol=1e-5)


def test_sigmoid_follows_the_definition() -> None:
    """Each label alone, with the bias."""
    values = np.array([0.9, 0.5, -0.5], np.float32)
    np.testing.assert_allclose([1 / (1 + math.exp(5 - 10 * v)) for v in values], scores(values, SIGMOID), rtol=1e-6)


def test_the_models_own_method_is_the_default() -> None:
    """A sigmoid model may also be asked to let its labels compete."""
    values = np.array([0.2, 0.4], np.float32)
    assert (scores(values, SIGMOID, "sigmoid") == scores(values, SIGMOID)).all()
    assert (scores(values, SOFTMAX, "softmax") == scores(values, SOFTMAX)).all()
    assert 1 == pytest.approx(scores(values, SIGMOID, "softmax").sum())


def test_cosine_stays_within_its_range() -> None:
    """Rounding must not answer a cosine above one."""
    answer = scores(np.array([1.0000001, -1.0000001, 0.25], np.float32), SOFTMAX, "cosine")
    assert [1.0, -1.0, 0.25] == answer.tolist()


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20),
    st.floats(1e-300, 1e300),
    st.sampled_from(["softmax", "sigmoid"]),
)
def test_scores_are_finite_at_any_temperature(values: list[float], temperature: float, method: str) -> None:
    """Extreme temperatures sharpen or flatten; they never overflow."""
    answer = scores(np.array(values, np.float32), SIGMOID, method, temperature)  # type: ignore[arg-type]
    assert np.isfinite(answer).all()
    assert ((answer >= 0) & (answer <= 1)).all()
    if method == "softmax":
        assert 1 == pytest.approx(float(answer.sum()), rel=1e-4)


def test_rows_of_a_batch_are_scored_by_themselves() -> None:
    """The last axis is the labels."""
    batch = np.array([[0.3, 0.2], [0.1, 0.4]], np.float32)
    np.testing.assert_array_equal(np.stack([scores(row, SOFTMAX) for row in batch]), scores(batch, SOFTMAX))


def test_what_the_model_cannot_do_is_refused() -> None:
    """Sigmoid needs a bias; a temperature is a positive number; a cosine has none."""
    with pytest.raises(InvalidScoring, match="bias"):
        check_scoring(SOFTMAX, "sigmoid")
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InvalidScoring, match="temperature"):
            scores(np.zeros(2, np.float32), SOFTMAX, temperature=temperature)
    with pytest.raises(InvalidScoring, match="cosine"):
        check_scoring(SOFTMAX, "cosine", 2.0)
    check_scoring(SIGMOID, "sigmoid")


def test_non_finite_cosines_never_become_scores() -> None:
    """NaN must not reach JSON."""
    with pytest.raises(NonFiniteOutput):
        scores(np.array([0.1, np.nan], np.float32), SOFTMAX)


@given(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0]), min_size=1, max_size=200), st.integers(1, 30))
def test_the_best_few_are_those_that_sorting_all_would_give(values: list[float], top_k: int) -> None:
    """Equal scores go by index also where only the best are looked for."""
    scored = np.array(values, np.float32)
    assert rank(scored)[:top_k].tolist() == rank(scored, top_k).tolist()


def test_ranking_falls_and_breaks_ties_by_position() -> None:
    """top_k and min_score cut the list; both limits may be wider than it."""
    values = np.array([0.1, 0.5, 0.1, 0.3], np.float32)
    assert [1, 3, 0, 2] == rank(values).tolist()
    assert [1, 3] == rank(values, top_k=2).tolist()
    assert [1, 3, 0, 2] == rank(values, top_k=99).tolist()
    assert [1, 3] == rank(values, min_score=0.3).tolist()
    assert [1] == rank(values, top_k=1, min_score=0.2).tolist()
    assert [] == rank(values, min_score=0.9).tolist()


@pytest.mark.parametrize(("top_k", "min_score"), [(0, None), (-1, None), (None, math.nan)])
def test_meaningless_cuts_are_refused(top_k: int | None, min_score: float | None) -> None:
    """An answer that can only be empty or arbitrary is a mistake of the client."""
    with pytest.raises(InvalidScoring):
        rank(np.zeros(3, np.float32), top_k, min_score)
