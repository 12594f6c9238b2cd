"""To the SageMaker SDK and back: a run of ours as its TrainingJob, a plan of ours as its ModelTrainer.

The SDK takes seconds to import and is imported by nothing else of ours; see docs/design.md.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator import api, backends, finding
from orchestrator.errors import BadInput
from orchestrator.preparing import Prepared


def _sdk() -> None:
    import importlib.util

    if importlib.util.find_spec("sagemaker") is None:
        raise BadInput("the SageMaker SDK is not installed", hint="pip install 'orchestrate-ml[sagemaker]'")


def training_job(run_id: str | None = None) -> Any:
    """The SageMaker SDK's own `TrainingJob` of a run: for its methods, its waiters, its model registry.

    Raises BadInput where the run is not one of SageMaker's, or the SDK is not installed.
    """
    run = finding.find(run_id)
    if run.backend != "sagemaker" or run.remote_id is None:
        raise BadInput(f"{run.id} is a {run.backend} run: SageMaker knows nothing of it", hint="orchestrate list")
    _sdk()
    from sagemaker.core.resources import TrainingJob

    backend: Any = backends.load("sagemaker")
    session = backend.session(run)
    return TrainingJob.get(training_job_name=run.remote_id, session=session, region=run.region)


def model_trainer(script: str | Path | None = None, *, sagemaker_session: Any = None, **options: Any) -> Any:
    """A `ModelTrainer` that trains what `orchestrator.submit` would with the same arguments, by the SDK's own means.

    It gives jobs names by the clock, keeps no ledger, and starts the script by its own drivers: what it launches is not
    known here. Call its `train()`.
    """
    prepared: Prepared = api.prepare(script, {**options, "backend": "sagemaker"}, fetch=True)
    _sdk()
    from sagemaker.core.shapes import CheckpointConfig, OutputDataConfig, Tag
    from sagemaker.train import ModelTrainer
    from sagemaker.train.configs import Compute, InputData, Networking, SourceCode, StoppingCondition
    from sagemaker.train.distributed import Torchrun

    plan, request = prepared.plan, prepared.request
    options_here = plan.spec.cloud
    resources, limits = request["ResourceConfig"], request["StoppingCondition"]
    several = plan.spec.processes > 1 or plan.spec.count > 1
    script_name = plan.entrypoint.script
    command = shlex.join(["python", script_name, *plan.spec.arguments]) if plan.spec.arguments and not several else None
    arguments: dict[str, Any] = {
        "sagemaker_session": sagemaker_session or _session_of(prepared),
        "role": request["RoleArn"],
        "base_job_name": plan.name,
        "training_image": request["AlgorithmSpecification"]["TrainingImage"],
        "source_code": SourceCode(
            source_dir=str(plan.entrypoint.source_dir),
            **({"command": command} if command else {"entry_script": script_name}),
        ),
        "compute": Compute(
            instance_type=resources["InstanceType"],
            instance_count=resources["InstanceCount"],
            volume_size_in_gb=resources["VolumeSizeInGB"],
            enable_managed_spot_training=plan.spec.spot,
        ),
        "stopping_condition": StoppingCondition(
            max_runtime_in_seconds=limits["MaxRuntimeInSeconds"],
            **(
                {"max_wait_time_in_seconds": limits["MaxWaitTimeInSeconds"]} if "MaxWaitTimeInSeconds" in limits else {}
            ),
        ),
        "output_data_config": OutputDataConfig(s3_output_path=request["OutputDataConfig"]["S3OutputPath"]),
        "checkpoint_config": CheckpointConfig(s3_uri=request["CheckpointConfig"]["S3Uri"]),
        "input_data_config": [InputData(channel_name=name, data_source=uri) for name, uri in _inputs(prepared)] or None,
        "environment": dict(plan.spec.environment),
        "hyperparameters": dict(plan.spec.hyperparameters),
        "tags": [Tag(key=name, value=text) for name, text in options_here.tags] or None,
    }
    if several:
        arguments["distributed"] = Torchrun(process_count_per_node=plan.spec.processes)
    if options_here.subnets:
        arguments["networking"] = Networking(
            subnets=list(options_here.subnets), security_group_ids=list(options_here.security_groups)
        )
    with _no_simulated_policies(prepared):
        return ModelTrainer(**arguments)


def _session_of(prepared: Prepared) -> Any:
    """The SDK's session of the plan's login and bucket: its own default would be a bucket with a guessable name."""
    from sagemaker.core.helper.session_helper import Session

    from orchestrator.backends.sagemaker import session_of

    place = prepared.plan.cloud
    assert place is not None
    session = session_of(place.region, endpoint=place.endpoint, profile=place.profile)
    # Told nothing of a rehearsal, the SDK would send telemetry out of this machine.
    silent = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}
    return Session(
        boto_session=session, default_bucket=place.bucket, **({"sagemaker_config": silent} if place.rehearsed else {})
    )


@contextlib.contextmanager
def _no_simulated_policies(prepared: Prepared) -> Iterator[None]:
    """In a rehearsal: the SDK asks IAM to simulate the role's policies, and a rehearsal has none."""
    place, name = prepared.plan.cloud, "SAGEMAKER_VALIDATE_ROLE"
    before = os.environ.get(name)
    if place is None or not place.rehearsed:
        yield
        return
    os.environ[name] = "false"
    try:
        yield
    finally:
        os.environ.pop(name)
        os.environ.update({} if before is None else {name: before})


def _inputs(prepared: Prepared) -> list[tuple[str, str]]:
    """Each data channel as the SDK takes it: an address in S3, or a folder, which it uploads itself."""
    return [
        (name, str(prepared.channels[name]) if name in prepared.channels else place)
        for name, place in prepared.plan.channels
    ]
