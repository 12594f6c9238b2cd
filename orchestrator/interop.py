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

from orchestrator import api, backends, finding, package, state
from orchestrator.aws.place import PREFIX
from orchestrator.errors import BadInput, raise_all
from orchestrator.preparing import Prepared
from orchestrator.spec import CloudOptions
from orchestrator.unpack import unpack


def _sdk() -> None:
    import importlib.util

    if importlib.util.find_spec("sagemaker") is None:
        raise BadInput("the SageMaker SDK is not installed", hint="pip install 'orchestrate-ml[sagemaker-sdk]'")


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
    known here. Its source is our package, unpacked in the state folder, without what packages leave out. Call its `train()`.

    Raises BadInput where something was asked for that it has no place for.
    """
    prepared: Prepared = api.prepare(script, {**options, "backend": "sagemaker"}, fetch=True)
    _sdk()
    _refuse_what_it_cannot(prepared)
    from sagemaker.core.shapes import CheckpointConfig, MetricDefinition, OutputDataConfig, Tag
    from sagemaker.train import ModelTrainer
    from sagemaker.train.configs import InputData, SourceCode, StoppingCondition, TensorBoardOutputConfig
    from sagemaker.train.distributed import Torchrun

    plan, request = prepared.plan, prepared.request
    place, given = plan.cloud, plan.spec.cloud
    assert place is not None
    script_name = plan.entrypoint.script
    command = shlex.join(["python", script_name, *plan.spec.arguments]) if plan.spec.arguments else None
    limits = {"MaxRuntimeInSeconds": "max_runtime_in_seconds", "MaxWaitTimeInSeconds": "max_wait_time_in_seconds"}
    stops = {limits[name]: seconds for name, seconds in request["StoppingCondition"].items() if name in limits}
    several = plan.spec.processes > 1 or plan.spec.count > 1
    kept = f"s3://{place.bucket}/{PREFIX}/handed-over/{place.launch_id}"
    with _no_simulated_policies(prepared):
        trainer = ModelTrainer(
            sagemaker_session=sagemaker_session or _session_of(prepared),
            role=request["RoleArn"],
            base_job_name=plan.name,
            training_image=request["AlgorithmSpecification"]["TrainingImage"],
            source_code=SourceCode(
                source_dir=str(_unpacked(prepared)),
                **({"command": command} if command else {"entry_script": script_name}),
            ),
            compute=_compute(prepared),
            networking=_networking(given),
            stopping_condition=StoppingCondition(**stops),
            output_data_config=OutputDataConfig(s3_output_path=f"{kept}/output", kms_key_id=given.kms_key),
            checkpoint_config=CheckpointConfig(s3_uri=f"{kept}/checkpoints"),
            input_data_config=[InputData(channel_name=name, data_source=uri) for name, uri in _inputs(prepared)]
            or None,
            environment=dict(plan.spec.environment),
            hyperparameters=dict(plan.spec.hyperparameters),
            tags=[Tag(key=name, value=text) for name, text in given.tags] or None,
            **({"distributed": Torchrun(process_count_per_node=plan.spec.processes)} if several else {}),
        )
    read = request["AlgorithmSpecification"]["MetricDefinitions"]
    trainer.with_metric_definitions([MetricDefinition(name=one["Name"], regex=one["Regex"]) for one in read])
    if given.tensorboard:
        local = request["TensorBoardOutputConfig"]["LocalPath"]
        trainer.with_tensorboard_output_config(
            TensorBoardOutputConfig(s3_output_path=f"{kept}/tensorboard", local_path=local)
        )
    return trainer


def _refuse_what_it_cannot(prepared: Prepared) -> None:
    spec = prepared.plan.spec
    raise_all(
        BadInput(f"a ModelTrainer has no place for {what}", hint=hint)
        for what, hint, asked in (
            ("resume_from", "give it the checkpoints as a data channel", spec.resume_from),
            ("[backend.sagemaker.extra]", "set the trainer's own fields", spec.cloud.extra),
            (
                "arguments on several machines or processes",
                "hyperparameters: {'lr': '0.1'} reaches the script as --lr 0.1",
                spec.arguments and (spec.count > 1 or spec.processes > 1),
            ),
        )
        if asked
    )


def _unpacked(prepared: Prepared) -> Path:
    """The files of our package, in a folder of their own: the SDK uploads all that it finds in one."""
    built = package.build(prepared.manifest, state.packages_dir())
    folder = state.home() / "handed-over" / built.digest
    if not folder.is_dir():
        state.make_private(folder.parent)
        unpack(built.path, folder)
    return folder


def _compute(prepared: Prepared) -> Any:
    from sagemaker.train.configs import Compute

    resources = prepared.request["ResourceConfig"]
    optional = {
        "volume_kms_key_id": resources.get("VolumeKmsKeyId"),
        "keep_alive_period_in_seconds": resources.get("KeepAlivePeriodInSeconds"),
    }
    return Compute(
        instance_type=resources["InstanceType"],
        instance_count=resources["InstanceCount"],
        volume_size_in_gb=resources["VolumeSizeInGB"],
        enable_managed_spot_training=prepared.plan.spec.spot,
        **{name: value for name, value in optional.items() if value is not None},
    )


def _networking(given: CloudOptions) -> Any:
    from sagemaker.train.configs import Networking

    if not (given.subnets or given.network_isolation or given.encrypt_traffic):
        return None
    return Networking(
        subnets=list(given.subnets) or None,
        security_group_ids=list(given.security_groups) or None,
        enable_network_isolation=given.network_isolation or None,
        enable_inter_container_traffic_encryption=given.encrypt_traffic or None,
    )


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
