"""The commands that are about money: estimate, machines, costs, prices. Flags in; the work is done elsewhere."""

from __future__ import annotations

import typer

from orchestrator import options as o


def estimate(
    context: typer.Context,
    script: o.Script = None,
    hours: o.Hours = None,
    instance: o.Machines = None,
    backend: o.CloudOnly = None,
    region: o.Regions = None,
    gpu: o.Gpu = None,
    max_usd: o.MaxUsd = None,
    count: o.Count = None,
    spot: o.Spot = None,
    data: o.Data = None,
    data_gb: o.DataGb = None,
    data_region: o.DataRegion = None,
    results_gb: o.ResultsGb = None,
    volume: o.Volume = None,
    keep_alive: o.KeepAlive = None,
    free_tier: o.FreeHours = None,
    config: o.Config = None,
    all_machines: o.All = False,
    as_json: o.Json = False,
    as_csv: o.Csv = False,
    html: o.Html = None,
) -> None:
    """What SCRIPT would cost, on one machine or on all.

    One machine: its bill in all parts. None or several: a table over both clouds. Nothing is sent.
    """
    from orchestrator import estimate_command
    from orchestrator.settings import Flags

    flags = Flags(
        script=script, arguments=context.obj, instance=instance, count=count, spot=spot, data=tuple(data or ()),
        volume_gb=volume, keep_alive_minutes=keep_alive,
    )  # fmt: skip
    asked = estimate_command.Asked(
        hours=hours, backend=backend, regions=tuple(region or ()), gpu=gpu, max_usd=max_usd, data_gb=data_gb,
        data_region=data_region, results_gb=results_gb, free_hours=free_tier, config=config,
        all_machines=all_machines, as_json=as_json, as_csv=as_csv, html=html,
    )  # fmt: skip
    estimate_command.run(flags, asked)


def machines(
    machine: o.OneMachine = None,
    backend: o.CloudOnly = None,
    region: o.Regions = None,
    gpu: o.Gpu = None,
    max_usd: o.MaxUsdHour = None,
    config: o.Config = None,
    all_machines: o.All = False,
    as_json: o.Json = False,
    as_csv: o.Csv = False,
) -> None:
    """List machines, their hardware and dated prices."""
    from orchestrator import machines_command

    machines_command.run(
        machines_command.Asked(
            machine=machine, backend=backend, regions=tuple(region or ()), gpu=gpu, max_usd=max_usd, config=config,
            all_machines=all_machines, as_json=as_json, as_csv=as_csv,
        )
    )  # fmt: skip


def costs(
    by: o.By = None,
    since: o.Since = None,
    until: o.Until = None,
    as_json: o.Json = False,
    as_csv: o.Csv = False,
) -> None:
    """What runs have cost, beside what was estimated."""
    from orchestrator import costs_command

    costs_command.run(by=tuple(by or ("month",)), since=since, until=until, as_json=as_json, as_csv=as_csv)


prices = typer.Typer(
    name="prices",
    help="Newer prices than the shipped: read, compare.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@prices.command()
def refresh(
    cloud: o.PriceCloud = None,
    region: o.Regions = None,
    all_regions: o.AllRegions = False,
    profile: o.Profile = None,
    google_api_key_file: o.KeyFile = None,
    as_json: o.Json = False,
) -> None:
    """Read the prices of training from AWS's Price List and Google's Billing Catalog. It costs nothing."""
    from orchestrator import prices_command

    prices_command.refresh(
        tuple(cloud or ("sagemaker", "vertex")), tuple(region or ()), all_regions, profile, google_api_key_file, as_json
    )


@prices.command("import")
def import_file(file: o.PriceFile, as_json: o.Json = False) -> None:
    """Take prices from a file that was downloaded elsewhere."""
    from orchestrator import prices_command

    prices_command.import_file(file, as_json)


@prices.command()
def diff(file: o.OldFile = None, as_json: o.Json = False) -> None:
    """What was read since against the shipped prices, or FILE against those that hold now."""
    from orchestrator import prices_command

    prices_command.diff(file, as_json)


def add_to(app: typer.Typer) -> None:
    """Add these commands to *app*."""
    for command in (estimate, machines, costs):
        app.command()(command)
    app.add_typer(prices)
