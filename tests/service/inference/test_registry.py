import asyncio
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import BundleError, ConfigurationError, NotReady, ProviderUnavailable, UnknownModel
from service.inference.registry import ModelRegistry
from service.lanes import Lane
from service.model.loading import Bundle, load_bundle
from service.model.manifest import SigmoidScoring
from service.monitoring.metrics import Metrics
from service.settings import Settings
from tests.support.classifying import until
from tests.support.fake_engine import FakeEngine
from tests.support.openvino import needs_openvino
from tests.support.probes import write_tiny_bundle_with_probes
from tests.support.tiny_bundle import write_tiny_bundle


def bundle(path: Path, name: str = "tiny", **options: Any) -> Bundle:
    """A tiny bundle of that name."""
    return load_bundle(write_tiny_bundle(path / name, name=name, **options))


def registry(*parts: tuple[Bundle, FakeEngine], **settings: Any) -> ModelRegistry:
    """A registry of bundles and fake engines."""
    return ModelRegistry.of(parts, Settings(**settings), Metrics())


def test_a_bundle_is_loaded_warmed_and_described(tmp_path: Path) -> None:
    """What is said is what really runs."""
    path = write_tiny_bundle(
        tmp_path / "b", aliases=("openai/tiny",), scoring=SigmoidScoring(logit_scale=9, logit_bias=-1)
    )
    metrics = Metrics()
    models = ModelRegistry.load(Settings(model=path, provider="cpu", threads=1), metrics)
    states = [models.ready]
    models.warm()
    assert [*states, models.ready] == [False, True]
    (info,) = models.describe()
    manifest = load_bundle(path).manifest
    assert (info.name, info.aliases, info.default) == ("tiny", ("openai/tiny",), True)
    assert (info.provider, info.precision, info.scoring) == ("cpu", "fp32", "sigmoid")
    assert (info.revision, info.parity, info.architecture) == (manifest.revision, None, manifest.architecture)
    assert (info.dim, info.image_height, info.image_width, info.context_length) == (16, 8, 8, 64)
    assert info.templates["default"] == ("a photo of a {}.",)
    labels = {"model": "tiny", "revision": manifest.revision, "provider": "cpu", "precision": "fp32"}
    labels |= {"chosen_by": "name", "threads": "1"}
    assert metrics.registry.get_sample_value("anyclass_model_info", labels) == 1
    asyncio.run(models.close())


@needs_openvino
@pytest.mark.parametrize(
    ("settings", "chosen_by"),
    [
        ({"tune": True}, "measurement"),
        ({"tune": False}, "rule"),
        ({"tune": True, "provider": "cpu"}, "name"),
        ({"tune": True, "provider": "openvino", "compute": "fp32"}, "name"),
    ],
)
def test_only_auto_measures_and_only_if_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], chosen_by: str
) -> None:
    """A provider named by the operator is taken as it is, and nothing is written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_tiny_bundle_with_probes(tmp_path / "b")
    models = ModelRegistry.load(Settings(model=path, threads=1, **settings), Metrics())
    (info,) = models.describe()
    assert chosen_by == info.chosen_by
    assert (chosen_by == "measurement") == bool(list(tmp_path.glob("cache/anyclass/choices/*.json")))
    asyncio.run(models.close())


def test_models_are_found_by_name_and_alias(tmp_path: Path) -> None:
    """The first is the default; an unknown name is quoted, shortened and without what a terminal would obey."""
    one, two = bundle(tmp_path, "one", aliases=("Org/One",)), bundle(tmp_path, "two")
    models = registry((one, FakeEngine()), (two, FakeEngine()))
    assert models.names == ("one", "two")
    assert models.default == models.get().name == models.get("one").name == models.get("Org/One").name == "one"
    assert models.get("two").name == "two"
    with pytest.raises(UnknownModel) as caught:
        models.get("\x1b[31m" + "x" * 200)
    assert f"Model '\\x1b[31m{'x' * 95}' is not served here; use one of one, two." == caught.value.detail


def test_two_models_cannot_share_a_name(tmp_path: Path) -> None:
    """Nor a name and an alias; the message names the way out."""
    one, two = bundle(tmp_path, "one"), bundle(tmp_path, "two", aliases=("one",))
    with pytest.raises(ConfigurationError, match=r"the name one\. Export one .* anyclass-export export .* --name NAME"):
        registry((one, FakeEngine()), (two, FakeEngine()))


def test_there_must_be_a_model() -> None:
    """A service without one could answer nothing."""
    with pytest.raises(ConfigurationError):
        registry()


def test_a_model_that_does_not_work_is_never_ready(tmp_path: Path) -> None:
    """Its warm-up fails, naming the file."""
    path = write_tiny_bundle(tmp_path / "b", nan_images=True)
    models = ModelRegistry.load(Settings(model=path, provider="cpu"), Metrics())
    with pytest.raises(BundleError, match="image_encoder"):
        models.warm()
    assert not models.ready


def test_a_changed_bundle_or_an_absent_provider_stops_the_start(tmp_path: Path) -> None:
    """Nothing else is served in its place."""
    path = write_tiny_bundle(tmp_path / "b")
    (path / "templates.json").write_text(json.dumps({"default": ["{}!"]}))
    with pytest.raises(BundleError, match=r"templates\.json"):
        ModelRegistry.load(Settings(model=path), Metrics())
    good = write_tiny_bundle(tmp_path / "good")
    with pytest.raises(ProviderUnavailable):
        ModelRegistry.load(Settings(model=good, provider="tensorrt"), Metrics())


async def test_models_of_one_device_share_its_thread(tmp_path: Path) -> None:
    """Two models on one device never run at once; another device has its own thread."""
    engines = [FakeEngine(), FakeEngine(), FakeEngine(provider="cuda")]
    bundles = await asyncio.to_thread(lambda: [bundle(tmp_path, name) for name in ("one", "two", "three")])
    models = await asyncio.to_thread(registry, *zip(bundles, engines, strict=True))
    pixels = np.zeros((8, 8, 3), np.uint8)
    await asyncio.gather(
        *(models.get(name).encode_image(pixels, lane=Lane.INTERACTIVE, deadline=float("inf")) for name in models.names)
    )
    assert engines[0].threads == engines[1].threads
    assert engines[0].threads.isdisjoint(engines[2].threads)
    await models.close()
    assert all(engine.closed for engine in engines)


async def test_texts_are_batched_by_length_and_answered_in_order(tmp_path: Path) -> None:
    """Each batch is as long as its longest text, and no text gets another's vector."""
    engine = FakeEngine()
    loaded = await asyncio.to_thread(bundle, tmp_path)
    models = await asyncio.to_thread(registry, (loaded, engine), max_batch_texts=2)
    tokens = [[5] * length for length in (9, 2, 3, 8, 2)]
    vectors = await models.get().encode_texts(tokens, lane=Lane.INTERACTIVE)
    assert sorted(shape for _, shape in engine.batches) == [(1, 9), (2, 2), (2, 8)]
    for row, vector in zip(tokens, vectors, strict=True):
        np.testing.assert_array_equal(vector, engine.encode_texts(np.array([row]))[0])
    await models.close()


async def test_closing_gives_up_on_a_device_that_hangs(tmp_path: Path) -> None:
    """Waiting callers are answered, and the process can end."""
    engine = FakeEngine()
    engine.gate.clear()
    loaded = await asyncio.to_thread(bundle, tmp_path)
    models = await asyncio.to_thread(registry, (loaded, engine))
    pixels = np.zeros((8, 8, 3), np.uint8)
    waiting = asyncio.create_task(models.get().encode_image(pixels, lane=Lane.INTERACTIVE, deadline=float("inf")))
    await until(lambda: 1 == len(engine.batches))
    await models.close(timeout_s=0.05)
    with pytest.raises(NotReady):
        await waiting
    engine.gate.set()


def test_several_bundles_are_served_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings' further bundles are loaded behind the first, which stays the default, demo or not."""
    two, three = write_tiny_bundle(tmp_path / "two", name="two"), write_tiny_bundle(tmp_path / "three", name="three")
    monkeypatch.setenv("ANYCLASS_MORE_MODELS", f"{two}{os.pathsep}{three}")

    models = ModelRegistry.load(Settings(provider="cpu", threads=1), Metrics())

    assert models.names == ("demo", "two", "three")
    assert models.default == "demo"
    asyncio.run(models.close())


def test_one_broken_bundle_of_several_stops_the_start(tmp_path: Path) -> None:
    """A service that cannot serve all of its models does not start with fewer."""
    absent = tmp_path / "absent"
    with pytest.raises(BundleError, match="absent"):
        ModelRegistry.load(Settings(provider="cpu", threads=1, more_models=(absent,)), Metrics())
