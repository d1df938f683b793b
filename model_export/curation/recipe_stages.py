"""Turn a recipe into stages and a curation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from model_export.curation.balance import BalanceSettings
from model_export.curation.dedup import DedupSettings, Method, methods_named
from model_export.curation.image_filter import ImageFilter
from model_export.curation.match import Match
from model_export.curation.output import Output
from model_export.curation.pieces import InputFile, PieceSizes, file_digest
from model_export.curation.planned import PlannedStage
from model_export.curation.planned_balance import PlannedBalance
from model_export.curation.planned_dedup import PlannedDedup
from model_export.curation.progress import CurationProgress
from model_export.curation.query_list import QueryList, read_queries, write_queries
from model_export.curation.query_sources import QuerySources, make_queries
from model_export.curation.recipe import BalanceSection, FilterSection, QueriesSection, Recipe, check
from model_export.curation.run import WORK, Curation
from model_export.curation.stage import Stage
from model_export.curation.text_filter import TextFilter
from model_export.data.patterns import expand_ranges
from model_export.drivers.driver import Driver
from model_export.errors import RecipeError

if TYPE_CHECKING:
    from model_export.curation.encoding import BundleEncoder

ENCODER: Final = "encoder"
"""Key of the recorded settings for `BundleEncoder.decides`, in place of a folder's name."""
QUERIES_COPY: Final = "records/queries.tsv"
"""The query list, in the output folder: `curate verify` needs nothing but it and the data."""
_MADE: Final = "made"
"""Key of the recorded settings that names the digests of the sources of a list that the recipe made."""


@dataclass(frozen=True)
class Stages:
    """Stages of a recipe, in order.

    Attributes:
        plain: judge each row by itself, and come first.
        planned: need a look at all rows.
    """

    plain: tuple[Stage, ...]
    planned: tuple[PlannedStage, ...]


def curation_of(
    recipe: Recipe,
    out: Path,
    driver: Driver,
    progress: CurationProgress,
    *,
    counts: Path | None = None,
    threads: int | None = None,
) -> Curation:
    """Return the curation that a recipe describes; make its query list, if it names the list's sources.

    Args:
        recipe: with paths as they are seen from the working folder.
        out: folder of the data set.
        driver: runs the tasks.
        progress: of the making of the list.
        counts: file for the queries' counts before a balance; by default, one in the output folder.
        threads: of a bundle's engine in each task.

    Raises:
        CurationError: a setting is out of range.
        BundleError, ProviderUnavailable, ConfigurationError: the bundle of the CLIP score cannot be run.
        DataError: the query list cannot be used, or its sources.
    """
    check(recipe, "recipe")
    named = (recipe.match and recipe.match.queries) or (recipe.balance and recipe.balance.queries)
    encoder = _encoder(recipe.filter, threads)
    stages_of(recipe, QueryList(()), encoder=encoder)  # refuses wrong settings before a list is made
    settings = recipe.model_dump(
        mode="json",
        include={"match", "filter", "dedup", "balance"},
        exclude={"filter": {"bundle", "provider"}},
        exclude_none=True,
    )
    if encoder:
        settings["filter"][ENCODER] = encoder.decides
    sources: Sequence[InputFile] = ()
    queries: QueryList | None = None
    if recipe.queries:
        queries, sources = _made(recipe.queries, out, driver, progress)
    elif named:
        queries = read_queries(Path(named))
    if queries:
        noted = {"sha256": queries.digest, "count": len(queries.queries)}
        settings["match" if recipe.match else "balance"]["queries"] = noted
    if recipe.queries:
        settings["queries"] = _recorded(recipe.queries, sources)
    stages = stages_of(recipe, queries, encoder=encoder, counts=counts)
    return Curation(
        recipe.data.files,
        stages.plain,
        out,
        columns=recipe.data.columns,
        sizes=PieceSizes(recipe.output.shard_mib * 2**20, recipe.output.table_mib * 2**20),
        notes={"settings": settings},
        driver=driver,
        companions={QUERIES_COPY: Path(named)} if named else {},
        planned=stages.planned,
        keep_work=recipe.output.keep_work,
        sources=sources,
        kind=recipe.output.format,
    )


def stages_of(
    recipe: Recipe, queries: QueryList | None, *, encoder: BundleEncoder | None = None, counts: Path | None = None
) -> Stages:
    """Return the stages of a recipe.

    Args:
        recipe: checked.
        queries: the list; without one, its stages are left out.
        encoder: for the CLIP score.
        counts: file for the queries' counts before a balance.

    Raises:
        CurationError: a setting is out of range.
    """
    plain: list[Stage] = []
    if recipe.match and queries:
        plain.append(Match(queries, keep_unmatched=recipe.match.keep_unmatched))
    plain += filters(recipe.filter, encoder) if recipe.filter else []
    planned: list[PlannedStage] = []
    if recipe.dedup:
        methods = methods_named(recipe.dedup.method)
        if Method.SEMANTIC in methods:
            raise RecipeError(
                "dedup.method: semantic needs vectors, which neither a recipe nor 'curate verify' makes; run "
                "'curate dedup' on the recipe's data set"
            )
        settings = DedupSettings(methods, recipe.dedup.similarity, seed=recipe.dedup.seed)
        planned.append(PlannedDedup(settings))
    if recipe.balance and queries:
        planned.append(PlannedBalance(_balance(recipe.balance), queries, counts))
    return Stages(tuple(plain), tuple(planned))


def filters(section: FilterSection, encoder: BundleEncoder | None) -> list[Stage]:
    """Return the stages of a section ``filter``, the cheaper ones first.

    Raises:
        CurationError: a setting is out of range.
    """
    stages: list[Stage] = []
    if section.text:
        stages.append(TextFilter(section.languages, section.confidence))
    if section.images:
        stages.append(ImageFilter(section.shorter_side, section.aspect))
    if section.clip_score is not None and encoder:
        from model_export.curation.clip_score import ClipScore  # brings the engine

        stages.append(ClipScore(encoder, section.clip_score))
    return stages


def _encoder(section: FilterSection | None, threads: int | None) -> BundleEncoder | None:
    if section is None or section.bundle is None:
        return None
    from model_export.curation.encoding import BundleEncoder  # brings the engine

    return BundleEncoder(Path(section.bundle), section.provider, threads=threads)


def remade_queries(
    folder: Path, settings: Mapping[str, Any], sources: Sequence[str], driver: Driver, progress: CurationProgress
) -> str:
    """Make a recorded query list again, and return its digest.

    Args:
        folder: for the counts, while they are made.
        settings: ``queries`` of the recorded settings.
        sources: files, in their order.
        driver: runs the counting.
        progress: of it.

    Raises:
        DataError: a source cannot be read.
    """
    known = {name: value for name, value in settings.items() if name != _MADE}
    kinds = settings[_MADE]
    names = iter(sources)
    found = {kind: tuple(next(names) for _ in digests) for kind, digests in kinds.items()}
    section = QueriesSection(
        **known,
        text=found["text"],
        titles=found["titles"],
        wordnet=str(Path(found["wordnet"][0]).parent) if found["wordnet"] else None,
    )
    return QueryList(make_queries(_sources(section), progress, driver=driver, work=folder)).digest


def _made(
    section: QueriesSection, out: Path, driver: Driver, progress: CurationProgress
) -> tuple[QueryList, list[InputFile]]:
    """Return the list that an earlier run has made of the same sources, or make it; and the sources."""
    output, path = Output(out), out / QUERIES_COPY
    with output.locked():
        driver.check_folder(out)
        sources = _sources(section)
        names = [*sources.texts, *map(str, sources.titles), *map(str, sources.synset_files)]
        progress.begin("sources of queries", len(names))
        files = []
        for name in names:
            files.append(InputFile(name, file_digest(name)))
            progress.advance()
        output.claim("queries", _recorded(section, files))
        if not path.exists():
            work = out / WORK  # goes at the end of the run, or of a later one
            work.mkdir(exist_ok=True)
            write_queries(path, make_queries(sources, progress, driver=driver, work=work))
    return read_queries(path), files


def _sources(section: QueriesSection) -> QuerySources:
    return QuerySources(
        [each for name in section.text for each in expand_ranges(name)],
        section.text_column,
        [Path(name) for name in section.titles],
        Path(section.wordnet) if section.wordnet else None,
        section.least,
        section.least_pmi,
        section.least_views,
    )


def _recorded(section: QueriesSection, files: Sequence[InputFile]) -> dict[str, Any]:
    """Return the settings of a list, with the digests of its sources in place of their names."""
    sources, digests = _sources(section), iter([file.digest for file in files])
    counts = {"text": len(sources.texts), "titles": len(sources.titles), "wordnet": len(sources.synset_files)}
    made = {kind: [next(digests) for _ in range(count)] for kind, count in counts.items()}
    return {**section.model_dump(mode="json", exclude={"text", "titles", "wordnet"}), _MADE: made}


def _balance(section: BalanceSection) -> BalanceSettings:
    return BalanceSettings(section.method, section.most, section.seed)
