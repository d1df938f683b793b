import numpy as np

from service.labels.matrix_cache import MatrixCache


def test_matrices_are_kept_up_to_a_number_of_bytes() -> None:
    """The least recently used matrix is evicted; one that is too large is not kept."""
    cache = MatrixCache(3 * 8)
    for name in (b"a", b"b", b"c"):
        cache.put(name, np.zeros((1, 2), np.float32))
    cache.get(b"a")
    cache.put(b"d", np.zeros((1, 2), np.float32))
    cache.put(b"e", np.zeros((4, 2), np.float32))
    assert [cache.get(name) is not None for name in (b"a", b"b", b"c", b"d", b"e")] == [True, False, True, True, False]
