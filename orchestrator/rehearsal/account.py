"""An account's S3, IAM and Logs, read where moto keeps them in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.rehearsal import control
from orchestrator.rehearsal.control import partition

TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"},
    ],
}


class MotoAccount:
    """One account. Not asked over HTTP: the checks of one create would be a dozen calls."""

    def __init__(self, account: str) -> None:
        from moto.backends import get_backend

        self.account = account
        self._backend: Any = get_backend
        self._lock = threading.Lock()
        self._prepared: set[str] = set()

    def prepare(self, region: str) -> None:
        """Make the bucket of *region*, and the role, where they are not there."""
        with self._lock:
            if region in self._prepared:
                return
            self._prepared.add(region)
            part = partition(region)
            self._make_role(part, f"/{control.ROLE_NAME}")
            self._make_bucket(control.bucket_of(region), region)

    def provide(self, role_arn: str, bucket: str, region: str) -> None:
        """Make this role, trusted by SageMaker, and this bucket, where there are none of these names."""
        with self._lock:
            self._make_role(role_arn.split(":")[1], role_arn.partition(":role")[2])
            self._make_bucket(bucket, region)

    def _make_role(self, part: str, path: str) -> None:
        before, _, name = path.rpartition("/")
        iam = self._backend("iam")[self.account][part]
        if not any(role.name == name for role in iam.get_roles()):
            iam.create_role(name, json.dumps(TRUST), f"{before}/", None, "", [], None)

    def _make_bucket(self, name: str, region: str) -> None:
        if self.bucket(name) is None:
            self._backend("s3")[self.account][partition(region)].create_bucket(name, region)

    def forget(self) -> None:
        with self._lock:
            self._prepared.clear()

    def bucket(self, name: str) -> Any:
        """moto's bucket of this name, whoever owns it, or None."""
        backends = self._backend("s3")
        where = backends.bucket_accounts.get(name)
        return None if where is None else backends[where[1]][where[0]].buckets.get(name)

    def make_foreign_bucket(self, name: str, owner: str, region: str) -> None:
        self._backend("s3")[owner][partition(region)].create_bucket(name, region)

    def owner_of(self, name: str) -> str | None:
        bucket = self.bucket(name)
        return None if bucket is None else str(bucket.account_id)

    def bucket_region(self, bucket: str) -> str | None:
        found = self.bucket(bucket)
        return None if found is None else str(found.region_name)

    def has_objects(self, bucket: str, prefix: str) -> bool:
        found = self.bucket(bucket)
        return found is not None and any(key.startswith(prefix) for key in list(found.keys))

    def trusts_sagemaker(self, role_arn: str) -> bool:
        iam = self._backend("iam")[self.account][role_arn.split(":")[1]]
        for role in iam.get_roles():
            if role.arn == role_arn:
                return _trusts(role.assume_role_policy_document)
        return False

    def log_events(
        self, region: str, group: str, prefix: str, read: Mapping[str, int]
    ) -> Iterator[tuple[str, list[tuple[int, str]]]]:
        found = self._backend("logs")[self.account][region].groups.get(group)
        for name, stream in list(found.streams.items()) if found is not None else []:
            if name.startswith(prefix):
                yield name, [(event.timestamp, event.message) for event in stream.events[read.get(name, 0) :]]


def _trusts(document: str) -> bool:
    statements = json.loads(document or "{}").get("Statement", [])
    for statement in [statements] if isinstance(statements, dict) else statements:
        principals = statement.get("Principal", {})
        services = principals.get("Service", []) if isinstance(principals, dict) else []
        names = [services] if isinstance(services, str) else services
        if statement.get("Effect") == "Allow" and "sagemaker.amazonaws.com" in names:
            return True
    return False
