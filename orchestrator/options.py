"""The command line's options, each with its help: what several commands share, and the many of `submit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _run_ids() -> list[str]:
    from orchestrator import state
    from orchestrator.runs import Ledger

    with Ledger.open_to_read(state.ledger_file()) as ledger:
        return [run.id for run in ledger.newest(50)]


def _text(name: str, metavar: str, words: str) -> object:
    return typer.Option(name, metavar=metavar, help=words)


Script = Annotated[
    str | None,
    typer.Argument(
        metavar="SCRIPT",
        help="A .py file or a shipped entrypoint (mlp). Default: orchestrate.toml, else ./train.py, else mlp.",
    ),
]
RunId = Annotated[
    str | None,
    typer.Argument(metavar="RUN", autocompletion=_run_ids, help="A run's id or its beginning. Default: the newest."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings file instead of ./orchestrate.toml.")
]
SourceDir = Annotated[
    str | None, typer.Option("--source-dir", metavar="FOLDER", help="Folder to take along. Default: the script's own.")
]
AllowFile = Annotated[
    list[str] | None,
    typer.Option("--allow-file", metavar="FILE", help="Take this file along although it looks like a secret."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Answer yes to every question.")]

# submit: what to run and where

Backend = Annotated[str | None, _text("--backend", "NAME", "local (default), sagemaker or vertex.")]
Instance = Annotated[
    str | None,
    _text("--instance", "TYPE[,TYPE]", "Machine, or several to try in order. A local run is capped to its size."),
]
Region = Annotated[str | None, _text("--region", "REGION", "Cloud region. Default: $AWS_REGION, else the profile's.")]
Count = Annotated[str | None, _text("--count", "N", "Machines.")]
Processes = Annotated[str | None, _text("--processes", "N", "Processes on each machine, under torchrun.")]
Spot = Annotated[bool | None, typer.Option("--spot/--no-spot", help="Cheaper machines that can be taken away.")]
Hp = Annotated[
    list[str] | None, _text("--hp", "NAME=VALUE", "Hyperparameter name=value; reaches the script as --name value.")
]
Data = Annotated[
    list[str] | None,
    _text("--data", "[NAME=]PLACE", "Data channel [NAME=]FOLDER, [NAME=]sample:mnist or, in AWS, [NAME=]s3://…"),
]
Env = Annotated[list[str] | None, _text("--env", "NAME=VALUE", "Environment variable NAME=VALUE for the script.")]
Name = Annotated[str | None, _text("--name", "NAME", "What to call the run.")]
MaxHours = Annotated[str | None, _text("--max-hours", "HOURS", "Hard stop in hours, which the cloud itself holds.")]
Budget = Annotated[str | None, _text("--budget", "USD", "Most that a cloud run may cost, in USD.")]
GraceSeconds = Annotated[
    str | None, _text("--grace-seconds", "SECONDS", "Time to save after SIGTERM. Default 30; 110 on SageMaker.")
]
ResumeFrom = Annotated[str | None, _text("--resume-from", "RUN", "Begin with the checkpoints that this run left.")]
Fallback = Annotated[
    str | None, _text("--fallback", "local", "Run here where there is no login, or no machine is to be had.")
]

# submit: what a cloud must be told

Role = Annotated[str | None, _text("--role", "ARN", "IAM role that the job runs as.")]
Bucket = Annotated[str | None, _text("--bucket", "NAME", "S3 bucket of yours for code, checkpoints and results.")]
Profile = Annotated[str | None, _text("--profile", "NAME", "AWS profile. Default: $AWS_PROFILE.")]
Image = Annotated[str | None, _text("--image", "URI", "Container image instead of AWS's PyTorch one.")]
Torch = Annotated[str | None, _text("--torch", "VERSION", "PyTorch of AWS's image. Default: the newest that fits.")]
Volume = Annotated[str | None, _text("--volume", "GB", "Disk of each machine. Default 30.")]
MaxWait = Annotated[str | None, _text("--max-wait", "HOURS", "Spot: hours to wait and run, all in all.")]
Subnet = Annotated[list[str] | None, _text("--subnet", "ID", "Subnet of your VPC; may be given again.")]
SecurityGroup = Annotated[
    list[str] | None, _text("--security-group", "ID", "Security group of your VPC; may be given again.")
]
KmsKey = Annotated[str | None, _text("--kms-key", "KEY", "KMS key for disks, uploads and results.")]
Tag = Annotated[list[str] | None, _text("--tag", "NAME=VALUE", "Tag on the job; may be given again.")]
KeepAlive = Annotated[
    str | None, _text("--keep-alive", "MINUTES", "Keep the machines warm for the next job. They go on costing.")
]
NetworkIsolation = Annotated[
    bool | None, typer.Option("--network-isolation/--no-network-isolation", help="No network inside the container.")
]
EncryptTraffic = Annotated[
    bool | None, typer.Option("--encrypt-traffic/--no-encrypt-traffic", help="Encrypt what machines send each other.")
]
TensorBoard = Annotated[
    bool | None, typer.Option("--tensorboard/--no-tensorboard", help="Upload TensorBoard events while it trains.")
]
Metric = Annotated[
    list[str] | None,
    _text("--metric", "NAME", "Metric for the console to plot. Default: the script's own, or common ones."),
]

# submit: how

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan, the package, the request and the cost; do nothing.")
]
Rehearse = Annotated[
    bool | None, typer.Option("--rehearse", help="Send the same request to a cloud on this machine, and really run it.")
]
Fault = Annotated[
    list[str] | None,
    _text(
        "--fault",
        "FAULT",
        "What the rehearsed cloud does wrong: reclaim:after=8, throttle:CreateTrainingJob:count=2, …",
    ),
]
Smoke = Annotated[bool, typer.Option("--smoke", help="First run a few steps in a scratch folder.")]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Return as soon as the run has started.")]
Again = Annotated[bool, typer.Option("--again", help="Launch although the same run is not over yet.")]
CancelOnInterrupt = Annotated[
    bool, typer.Option("--cancel-on-interrupt", help="Ctrl-C stops a cloud run. Without: it goes on.")
]

# estimate, machines, costs, prices

Hours = Annotated[
    str | None, _text("--hours", "HOURS", "How long the script itself trains. Default: its earlier runs.")
]
Machines = Annotated[
    str | None, _text("--instance", "TYPE[,TYPE]", "One machine: its bill in all parts. Several, or none: a table.")
]
Regions = Annotated[
    list[str] | None, _text("--region", "REGION", "Prices there alone; may be given again, once for each cloud.")
]
Gpu = Annotated[str | None, _text("--gpu", "MODEL", "Only machines with this GPU: A100, T4, …; none: without any.")]
MaxUsd = Annotated[str | None, _text("--max-usd", "USD", "Only machines on which it costs no more.")]
MaxUsdHour = Annotated[str | None, _text("--max-usd", "USD", "Only machines of which an hour costs no more.")]
CloudOnly = Annotated[str | None, _text("--backend", "NAME", "Only this cloud: sagemaker or vertex.")]
DataGb = Annotated[str | None, _text("--data-gb", "GB", "Size of the data. Default: that of --data folders here.")]
DataRegion = Annotated[str | None, _text("--data-region", "REGION", "Where the data lies, if not where it trains.")]
ResultsGb = Annotated[
    str | None, _text("--results-gb", "GB", "Size of model, checkpoints and output. Default: assumed.")
]
FreeHours = Annotated[
    str | None,
    _text("--free-tier", "HOURS", "Hours of SageMaker's free tier that your account has left. Default: none."),
]
All = Annotated[bool, typer.Option("--all", help="Every machine, also those whose price is unknown.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print comma-separated rows on stdout and nothing else.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with a chart to FILE.")]
OneMachine = Annotated[str | None, typer.Argument(metavar="MACHINE", help="One machine: all that is known of it.")]
By = Annotated[
    list[str] | None, _text("--by", "WHAT", "month (default), script or machine; given again, one within the other.")
]
Since = Annotated[str | None, _text("--since", "DATE", "Only runs from this day on: 2026-11-01, UTC.")]
Until = Annotated[str | None, _text("--until", "DATE", "Only runs before this day, UTC.")]
PriceCloud = Annotated[list[str] | None, _text("--cloud", "NAME", "sagemaker or vertex. Default: both.")]
AllRegions = Annotated[
    bool, typer.Option("--all-regions", help="Every region of the service, not only the usual ones.")
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--google-api-key-file", metavar="FILE", help="API key for Google's prices. Or: $GOOGLE_API_KEY, a login."
    ),
]
PriceFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="An AWS offer file (index.json) or an export of Google's SKUs.")
]
OldFile = Annotated[Path | None, typer.Argument(metavar="FILE", help="Compare this file. Default: what was refreshed.")]
