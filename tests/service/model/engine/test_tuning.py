"""`auto` measures: real sessions on a tiny bundle, with a stopwatch whose seconds are made up."""

import dataclasses
import gc
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from service.inference.registry import ModelRegistry
from service.labels.cache_keys import class_vector_keys, vector_identity
from service.model.choices import ComputeChoice
from service.model.engine import choice_store, encoder
from service.model.engine.candidates import Candidate, provider_candidates, thread_counts
from service.model.engine.choice_store import ChoiceStore, choice_key
from service.model.engine.cpus import Cpu
from service.model.engine.encoder import Encoder
from service.model.engine.measurement import THOROUGH, Effort
from service.model.engine.provider_table import DeviceLimits
from service.model.engine.providers import resolve
from service.model.engine.tuning import Tuner
from service.model.loading import Bundle, load_bundle
from service.model.probes import PROBES
from service.monitoring.metrics import Metrics
from service.settings import Settings
from tests.support.fake_engine import FakeEngine
from tests.support.openvino import needs_openvino
from tests.support.probes import with_probes
from tests.support.tiny_bundle import write_tiny_bundle

PLAIN = Cpu("GenuineIntel", frozenset({"avx2"}), "a CPU")
CPU_2, OPENVINO_2 = Candidate("cpu", "fp32", 2), Candidate("openvino", "fp32", 2)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A tiny model with probes."""
    return with_probes(load_bundle(write_tiny_bundle(tmp_path / "tiny")))


@dataclass
class Watch:
    """A stopwatch that does the work and reports made-up seconds.

    Attributes:
        seconds: of one picture, by provider and threads; the rest take one.
        opening: seconds of opening an encoder.
        runs: candidate and pictures of each run; 0 pictures open an encoder.
    """

    seconds: dict[tuple[str, int], float] = field(default_factory=dict)
    opening: float = 0.01
    runs: list[tuple[Candidate, int]] = field(default_factory=list)

    def __call__(self, candidate: Candidate, pictures: int, work: Callable[[], object]) -> float:
        """Do the work; return its seconds."""
        work()
        self.runs.append((candidate, pictures))
        return self.seconds.get((candidate.provider, candidate.threads), 0.01) * pictures if pictures else self.opening


def tuner(folder: Path, watch: Watch | None = None, **options: Any) -> Tuner:
    """A tuner of a CPU without bf16 that keeps its choices in `folder`."""
    given: dict[str, Any] = {"limits": DeviceLimits(), "cpu": PLAIN, "cpus": 2} | options
    return Tuner(resolve("auto", cpu=PLAIN), ChoiceStore(folder), stopwatch=watch or Watch(), **given)


@needs_openvino
def test_the_fastest_is_taken_and_kept(bundle: Bundle, tmp_path: Path) -> None:
    """The engine runs on it and says why; the next start takes it without a single run."""
    watch = Watch({("openvino", 2): 0.005})
    engine = tuner(tmp_path / "choices", watch).load(bundle)
    assert ("openvino", "fp32", 2, "measurement") == (
        engine.provider,
        engine.precision,
        engine.cpu_threads,
        engine.chosen_by,
    )
    expected = (
        "auto, by measurement: openvino fp32, 2 threads: 200.0 and 200.0 pictures/s at batch 1 and 8; "
        "cpu fp32, 2 threads: 100.0 and 100.0 pictures/s at batch 1 and 8"
    )
    assert expected == engine.provider_reason
    assert np.allclose(1, np.linalg.norm(engine.encode_images(np.zeros((2, 8, 8, 3), np.uint8)), axis=1))
    again = Watch()
    later = tuner(tmp_path / "choices", again).load(bundle)
    assert ("openvino", expected + " (known from an earlier start)") == (later.provider, later.provider_reason)
    assert [] == again.runs


@needs_openvino
def test_what_is_hardly_faster_does_not_replace_the_rules_choice(bundle: Bundle, tmp_path: Path) -> None:
    """A few percent may be noise."""
    engine = tuner(tmp_path / "choices", Watch({("openvino", 2): 0.0095})).load(bundle)
    assert ("cpu", "measurement") == (engine.provider, engine.chosen_by)


@needs_openvino
def test_a_candidate_that_disagrees_with_the_probes_is_never_timed(tmp_path: Path) -> None:
    """However fast it would be; the reason has its cosine. `cpu` is what others are held to."""
    bundle = with_probes(load_bundle(write_tiny_bundle(tmp_path / "tiny")), turned=True)
    watch = Watch({("openvino", 2): 0.001})
    engine = tuner(tmp_path / "choices", watch).load(bundle)
    assert [(CPU_2, 0), (OPENVINO_2, 0)] == watch.runs
    assert ("cpu", "measurement") == (engine.provider, engine.chosen_by)
    expected = (
        r"auto, by measurement: cpu fp32, 2 threads: the only one that can be used; "
        r"openvino fp32, 2 threads: cosine .* to the probes, 0\.99 is needed"
    )
    assert re.fullmatch(expected, engine.provider_reason)


@needs_openvino
def test_a_text_encoder_that_disagrees_leaves_the_choice_to_cpu(bundle: Bundle, tmp_path: Path) -> None:
    """Only images are timed, texts are checked when the engine is opened; what is kept is what then serves."""
    arrays = load_file(bundle.path / PROBES)
    arrays["text_vectors"] = np.ascontiguousarray(arrays["text_vectors"][:, ::-1])
    save_file(arrays, bundle.path / PROBES)
    engine = tuner(tmp_path / "choices", Watch({("openvino", 2): 0.001})).load(bundle)
    assert ("cpu", "rule", 2) == (engine.provider, engine.chosen_by, engine.cpu_threads)
    assert "wrongly" in engine.provider_reason
    later = Watch()
    assert "cpu" == tuner(tmp_path / "choices", later).load(bundle).provider
    assert [] == later.runs


def test_half_of_the_threads_are_timed_with_the_fastest_provider(bundle: Bundle, tmp_path: Path) -> None:
    """They are taken if they are faster; `anyclass tune` times them with every provider."""
    watch = Watch({("cpu", 4): 0.004, ("openvino", 8): 0.02})
    engine = tuner(tmp_path / "choices", watch, cpus=8).load(bundle)
    assert ("cpu", 4) == (engine.provider, engine.cpu_threads)
    assert Candidate("openvino", "fp32", 4) not in {candidate for candidate, _ in watch.runs}
    every = tuner(tmp_path / "choices", Watch(), cpus=8).measure(bundle, THOROUGH)
    assert set(tuner(tmp_path, cpus=8).candidates(bundle, every=True)) == {trial.candidate for trial in every.trials}


def test_at_most_two_encoders_are_open_and_one_at_the_end(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted as they are opened and collected."""
    alive: set[int] = set()
    most = []

    class Counted(Encoder):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            alive.add(id(self))
            most.append(len(alive))
            weakref.finalize(self, alive.discard, id(self))

    monkeypatch.setattr(encoder, "Encoder", Counted)
    found = tuner(tmp_path / "choices", Watch({("cpu", 4): 0.004}), cpus=8).measure(bundle, THOROUGH)
    gc.collect()
    assert 2 == max(most)
    assert [found.chosen] == [trial for trial in found.trials if trial.encoder is not None]
    assert 1 == len(alive)


def test_a_clear_case_ends_after_three_rounds(bundle: Bundle, tmp_path: Path) -> None:
    """A close one goes on until its rounds or its seconds are used up; a batch is as large as three rounds allow."""
    clear, close, slow = Watch({("cpu", 4): 0.02}), Watch(), Watch({("cpu", 8): 0.1, ("cpu", 4): 0.1})
    effort = Effort(every=True, rounds=4, runs_s=100, limit_s=1e9)
    for watch, each in ((clear, effort), (close, effort), (slow, dataclasses.replace(effort, runs_s=2.0))):
        only_cpu(tuner(tmp_path / "choices", watch, cpus=8)).measure(bundle, each)
    four = Candidate("cpu", "fp32", 4)
    assert [0, *[1, 8] * 3] == [pictures for candidate, pictures in clear.runs if candidate == four]
    assert [0, *[1, 8] * 4] == [pictures for candidate, pictures in close.runs if candidate == four]
    assert {0, 1, 2} == {pictures for _, pictures in slow.runs}


def test_slow_graphs_are_not_opened_one_after_the_other(bundle: Bundle, tmp_path: Path) -> None:
    """If another would take the start beyond its limit, the choice of the CPU's flags stays, and says so."""
    watch = Watch(opening=6.0)
    engine = only_cpu(tuner(tmp_path / "choices", watch, cpus=8)).load(bundle)
    assert [(Candidate("cpu", "fp32", 8), 0)] == watch.runs
    assert engine.provider_reason.endswith("cpu fp32, 4 threads: not timed, to start in time")
    again = Watch()
    only_cpu(tuner(tmp_path / "choices", again, cpus=8)).load(bundle)
    assert [] == again.runs


def only_cpu(made: Tuner) -> Tuner:
    """The tuner without OpenVINO, wherever that is installed."""
    made.candidates = lambda bundle, *, every: [  # type: ignore[method-assign]
        each for each in Tuner.candidates(made, bundle, every=every) if each.provider == "cpu"
    ]
    return made


def test_nothing_is_measured_where_nothing_is_to_choose(tmp_path: Path) -> None:
    """One number of threads and no probes, without which no other provider is tried: the CPU's flags decide."""
    bundle, watch = load_bundle(write_tiny_bundle(tmp_path / "tiny")), Watch()
    engine = tuner(tmp_path / "choices", watch).load(bundle)
    assert ("cpu", "rule", []) == (engine.provider, engine.chosen_by, watch.runs)
    assert not (tmp_path / "choices").exists()


@pytest.mark.parametrize("content", ["", "{", '{"key": {}, "choice": 1}', "\udcff", "[]"])
def test_a_damaged_file_is_ignored_and_replaced(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    """With a line in the log."""
    store = ChoiceStore(tmp_path)
    key = tuner(tmp_path, cpus=8).key(bundle)
    store.path(key).write_text(content, "utf-8", "surrogateescape")
    watch = Watch()
    tuner(tmp_path, watch, cpus=8).load(bundle)
    assert watch.runs
    assert "cannot be used and is measured again" in caplog.text
    assert store.read(key) is not None


def test_a_foreign_file_is_ignored(bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of another machine under this one's name, or with a choice that is not possible here."""
    made = tuner(tmp_path, Watch(), cpus=8)
    made.load(bundle)
    store, key = ChoiceStore(tmp_path), made.key(bundle)
    text = store.path(key).read_text()
    store.path(key).write_text(text.replace("a CPU", "another"))
    assert store.read(key) is None
    assert "of another machine or bundle" in caplog.text
    store.path(key).write_text(re.sub(r'"threads": \d+', '"threads": 99', text))
    watch = Watch()
    assert 99 != tuner(tmp_path, watch, cpus=8).load(bundle).cpu_threads
    assert watch.runs
    assert "is not possible here" in caplog.text


@pytest.mark.parametrize("blocked", ["folder", "file"])
def test_a_disk_that_takes_no_writes_stops_no_start(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture, blocked: str
) -> None:
    """The choice holds for this start; a line in the log says that the next measures again."""
    made = tuner(tmp_path / "choices", Watch(), cpus=8)
    path = ChoiceStore(tmp_path / "choices").path(made.key(bundle))
    (tmp_path / "choices" if blocked == "folder" else path / "in the way").parent.mkdir(parents=True, exist_ok=True)
    if blocked == "folder":
        (tmp_path / "choices").touch()  # as root, the tests may write into folders that are read-only
    engine = made.load(bundle)
    assert "measurement" == engine.chosen_by
    assert "the next start measures again" in caplog.text
    assert [] == list(tmp_path.rglob("*.part"))


def test_workers_that_cannot_share_a_choice_do_not_measure(bundle: Bundle, tmp_path: Path) -> None:
    """Each might choose another; with a folder they do, one after the other."""
    (tmp_path / "file").touch()
    watch = Watch()
    engine = tuner(tmp_path / "file", watch, cpus=8, alone=False).load(bundle)
    assert ("rule", []) == (engine.chosen_by, watch.runs)
    assert "measurement" == tuner(tmp_path / "choices", watch, cpus=8, alone=False).load(bundle).chosen_by


def test_only_one_process_measures_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another waits, and not for ever."""
    with ChoiceStore(tmp_path).locked() as first:
        monkeypatch.setattr(choice_store, "_LOCK_S", 0.0)
        with ChoiceStore(tmp_path).locked() as second:
            assert (True, False) == (first, second)
    with ChoiceStore(tmp_path).locked() as third:
        assert third


def test_a_choice_depends_on_machine_bundle_and_settings() -> None:
    """Each has a key of its own; flags that no kernel is chosen by do not count."""
    cases: list[tuple[Cpu, list[int], str, ComputeChoice, int]] = [
        (PLAIN, [2], "a", "auto", 8),
        (dataclasses.replace(PLAIN, model="another CPU"), [2], "a", "auto", 8),
        (dataclasses.replace(PLAIN, flags=frozenset({"avx2", "avx512_vnni"})), [2], "a", "auto", 8),
        (PLAIN, [8, 4], "a", "auto", 8),
        (PLAIN, [2], "b", "auto", 8),
        (PLAIN, [2], "a", "fp32", 8),
        (PLAIN, [2], "a", "auto", 4),
    ]
    keys = [
        choice_key(cpu, threads, revision=revision, compute=compute, batch=batch)
        for cpu, threads, revision, compute, batch in cases
    ]
    assert len(keys) == len({ChoiceStore(Path()).path(key) for key in keys})
    noisy = dataclasses.replace(PLAIN, flags=PLAIN.flags | {"aperfmperf"})
    assert keys[0] == choice_key(noisy, [2], revision="a", compute="auto", batch=8)
    assert {"anyclass", "onnxruntime", "openvino"} < set(keys[0])


@needs_openvino
def test_candidates_are_what_the_cpu_and_the_settings_allow() -> None:
    """bf16 where the CPU has it and the bundle is in 32-bit floats; one precision if one is asked for."""
    bf16 = Cpu("GenuineIntel", frozenset({"avx512_bf16"}))

    def found(precision: str, compute: ComputeChoice, cpu: Cpu) -> list[tuple[str, str]]:
        return [(each.provider, each.compute) for each in provider_candidates(precision, compute, cpu, 2)]

    both = [("cpu", "fp32"), ("openvino", "fp32")]
    assert both == found("fp32", "auto", PLAIN) == found("int8", "auto", bf16) == found("fp32", "fp32", bf16)
    assert [*both, ("openvino", "bf16")] == found("fp32", "auto", bf16)
    assert [("openvino", "bf16")] == found("fp32", "bf16", bf16)
    assert ([2], [3], [4, 2], [1]) == (
        thread_counts(None, 2),
        thread_counts(3, 8),
        thread_counts(None, 4),
        thread_counts(1, 1),
    )


def test_vectors_of_another_choice_have_other_cache_keys(bundle: Bundle, tmp_path: Path) -> None:
    """The key of a class vector knows provider and precision, whatever `auto` chose."""
    metrics, settings = Metrics(), Settings()
    keys = set()
    for provider, compute in (("cpu", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")):
        engine = FakeEngine(provider=provider, precision=compute)
        (name,) = (registry := ModelRegistry.of([(bundle, engine)], settings, metrics)).names
        model = registry.get(name)
        identity = vector_identity(model.manifest.text_revision, model.numerics, ["{}"])
        keys |= set(class_vector_keys("", identity, ["cat"]))
    assert 3 == len(keys)
