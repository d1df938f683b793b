import inspect

from service import errors


def _classes() -> dict[str, type]:
    return {name: cls for name, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__}


def test_every_error_is_one_of_ours() -> None:
    """Catching AnyclassError catches them all."""
    assert all(issubclass(cls, errors.AnyclassError) for cls in _classes().values())


def test_the_module_says_the_whole_tree() -> None:
    """The module docstring names every error."""
    assert set(_classes()) == {
        line.strip(" *·") for line in errors.__doc__.splitlines() if line.strip()[:1] in "*·"
    } - {""}


def test_detail_is_the_message() -> None:
    """Clients and logs get the same sentence."""
    error = errors.InvalidLabels("Label 3 is empty.")
    assert "Label 3 is empty." == error.detail == str(error)


def test_errors_carry_what_their_handlers_need() -> None:
    """Overload has the time to retry, a long prompt its index."""
    assert 2.5 == errors.Overloaded("later", 2.5).retry_after_s
    assert 7 == errors.PromptTooLong("too long", index=7).index
