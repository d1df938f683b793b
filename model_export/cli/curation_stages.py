"""The commands ``curate filter`` and ``curate balance``."""

from pathlib import Path
from typing import Annotated

import typer

from model_export.cli.curation_running import ShardKind, Shards, run_recipe
from model_export.cli.driving import DriverChoice, DriverName, RayAddress, Workers, driving, threads_of
from service.model.engine.provider_table import ProviderName

_Data = Annotated[
    list[str],
    typer.Argument(metavar="DATA", help="Parquet files, folders of them, or WebDataset tars ({000..009}.tar)."),
]
_Out = Annotated[Path, typer.Option(help="Folder for the shards and dataset.json. The same command continues there.")]
_Json = Annotated[Path | None, typer.Option("--json", help="Write the content of dataset.json to this file too.")]


def filter_pairs(
    data: _Data,
    out: _Out,
    *,
    text: Annotated[bool, typer.Option("--text/--no-text", help="Drop captions that are not natural language.")] = True,
    language: Annotated[
        list[str] | None,
        typer.Option(help="Keep captions in this language (ISO 639-1); several add up. \\[default: en]"),
    ] = None,
    confidence: Annotated[
        float, typer.Option(help="Least probability of the language; higher keeps fewer captions.")
    ] = 0.25,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Drop pictures that are broken, small, flat or animated.")
    ] = False,
    shorter_side: Annotated[int, typer.Option(help="Fewest pixels of a picture's shorter side.")] = 200,
    aspect: Annotated[float, typer.Option(help="Most times that the longer side is the shorter one.")] = 3.0,
    clip_score: Annotated[
        float | None,
        typer.Option(metavar="COSINE", help="Drop pairs whose picture and caption differ more; needs --bundle."),
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="The folder of the bundle for --clip-score.")] = None,
    provider: Annotated[ProviderName, typer.Option(help="Execution provider that runs the bundle.")] = "auto",
    text_column: Annotated[str, typer.Option(help="Column of the captions.")] = "text",
    image_column: Annotated[str, typer.Option(help="Column of the encoded pictures.")] = "image",
    shards: Shards = ShardKind.PARQUET,
    workers: Workers = None,
    driver: DriverChoice = DriverName.LOCAL,
    ray_address: RayAddress = None,
    json_file: _Json = None,
) -> None:
    """Keep pairs with a caption in natural language, with pictures that show something, and that fit each other."""
    from model_export.curation.pieces import InputColumns
    from model_export.curation.recipe import DataSection, FilterSection, OutputSection, Recipe
    from model_export.errors import CurationError

    if (clip_score is None) != (bundle is None):
        raise CurationError("--clip-score and --bundle belong together; give both")
    if not (text or images or bundle):
        raise CurationError("nothing to filter: give --text, --images or --clip-score")
    recipe = Recipe(
        data=DataSection(files=tuple(data), columns=InputColumns(text=text_column, image=image_column)),
        filter=FilterSection(
            text=text,
            languages=tuple(language or ("en",)),
            confidence=confidence,
            images=images,
            shorter_side=shorter_side,
            aspect=aspect,
            clip_score=clip_score,
            bundle=str(bundle) if bundle else None,
            provider=provider,
        ),
        output=OutputSection.model_validate({"format": shards.value}),
    )
    with driving(driver, workers, ray_address) as chosen:
        run_recipe(recipe, out, chosen, json_file=json_file, threads=threads_of(driver, workers))


def balance(
    data: _Data,
    queries: Annotated[Path, typer.Option(help="The query list that the pairs were matched with.")],
    out: _Out,
    *,
    method: Annotated[
        str,
        typer.Option(
            help="cap: charge each pair to its rarest query, at most T a query. independent: each query keeps a pair "
            "with probability T/count."
        ),
    ] = "cap",
    most: Annotated[int, typer.Option(metavar="T", help="Pairs a query.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Decides which pairs stay.")] = 0,
    counts: Annotated[
        Path | None, typer.Option(help="Parquet file of the queries' counts: read if it exists, else written.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw matched and kept pairs into this PNG file.")] = None,
    shards: Shards = ShardKind.PARQUET,
    workers: Workers = None,
    driver: DriverChoice = DriverName.LOCAL,
    ray_address: RayAddress = None,
    json_file: _Json = None,
) -> None:
    """Keep at most T pairs a query, so that frequent things do not crowd out rare ones."""
    from model_export.curation.balance import method_named
    from model_export.curation.recipe import BalanceSection, DataSection, OutputSection, Recipe

    recipe = Recipe(
        data=DataSection(files=tuple(data)),
        balance=BalanceSection(queries=str(queries), method=method_named(method), most=most, seed=seed),
        output=OutputSection.model_validate({"format": shards.value}),
    )
    with driving(driver, workers, ray_address) as chosen:
        run_recipe(recipe, out, chosen, json_file=json_file, plot=plot, counts=counts)
