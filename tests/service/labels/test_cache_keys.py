from service.labels.cache_keys import class_vector_keys, labels_digest, matrix_digest, vector_identity


def test_keys_follow_from_everything_that_decides_a_vector() -> None:
    """Text revision, numerics, ordered templates and label determine a key; nothing else does."""
    identities = [
        vector_identity("r1", "cpu/fp32", ["{}"]),
        vector_identity("r2", "cpu/fp32", ["{}"]),
        vector_identity("r1", "cuda/fp32", ["{}"]),
        vector_identity("r1", "cpu/fp32", ["{}", "a {}"]),
        vector_identity("r1", "cpu/fp32", ["a {}", "{}"]),
        vector_identity("r1c", "pu/fp32", ["{}"]),
    ]
    keys = [key for identity in identities for key in class_vector_keys("anyclass:v1:", identity, ["cat", "a cat"])]
    assert len(set(keys)) == 12
    assert keys[:2] == class_vector_keys("anyclass:v1:", identities[0], ["cat", "a cat"])
    assert all(key.startswith("anyclass:v1:") and len(key) == 12 + 64 for key in keys)
    lists = (["a", "b"], ["b", "a"], ["ab"], ["a"], ["a b"])
    digests = {matrix_digest(identity, labels_digest(labels)) for identity in identities[:1] for labels in lists}
    assert len(digests) == 5
