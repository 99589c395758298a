"""`oarlock-operator release`: takes our finalizer off everything, so that nothing hangs once no operator is left.

Run by the chart before an uninstall. The operators are sent away first, and their lease is taken: a running one would
put the finalizer back.
"""

import asyncio
import logging

from oarlock_operator.api import names
from oarlock_operator.controller.client import Api, ApiError
from oarlock_operator.controller.lease import Lease
from oarlock_operator.controller.metrics import Metrics
from oarlock_operator.controller.run import LEASE_NAME

_LEASE_SECONDS = 60.0

log = logging.getLogger(__name__)


async def release(namespaces: tuple[str, ...], lease_namespace: str, deployment: str) -> int:
    """Scales the operator's Deployment to nothing ("" leaves it), waits for the lease, removes finalizers and lease."""
    api = await Api.connect(Metrics())
    lease = Lease(api, lease_namespace, LEASE_NAME, "uninstall")
    try:
        if deployment:
            await api.merge("Deployment", lease_namespace, deployment, {"spec": {"replicas": 0}})
        try:
            await asyncio.wait_for(lease.acquire(), _LEASE_SECONDS)
        except TimeoutError:
            log.error("an operator still leads after %.0f s", _LEASE_SECONDS)
            return 1
        count = 0
        for namespace in namespaces or (None,):
            async for body in api.objects(names.KIND, namespace):
                count += await _let_go(api, body["metadata"])
        log.info("%d ModelDeployments no longer wait for an operator", count)
        found = await api.get("Lease", lease_namespace, LEASE_NAME)
        await api.delete("Lease", lease_namespace, LEASE_NAME, found["metadata"]["uid"])
        return 0
    finally:
        await api.close()


async def _let_go(api: Api, metadata: dict[str, object]) -> bool:
    finalizers = metadata.get("finalizers")
    if not isinstance(finalizers, list) or names.FINALIZER not in finalizers:
        return False
    patch = {"metadata": {"finalizers": [name for name in finalizers if name != names.FINALIZER]}}
    try:
        await api.merge(names.KIND, str(metadata["namespace"]), str(metadata["name"]), patch)
    except ApiError as error:
        if error.status != 404:
            raise
    return True
