"""Requests to the API server, as few kinds as the operator needs, each with a time limit and counted.

Writes first ask the fence, which refuses when the lease may have passed to another operator. Where the chart's
admission policy is installed, the API server refuses them too.
"""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes.aio import client as kube
from kubernetes.aio import config as kube_config

from oarlock_operator.api.names import API_VERSION, FIELD_MANAGER, NOT_HOLDER, PLURAL
from oarlock_operator.controller.metrics import Metrics

READ_SECONDS = 30.0
LOG_SECONDS = 3.0  # the API server asks the node, which may be dead
WRITE_SECONDS = 3.0  # shorter than the lease outlives its renewal deadline, so that no write is under way afterwards
_CHUNK = 250
_IDLE_SECONDS = 80.0  # the API server ends connections that are idle for 90

_RESOURCES = {
    "Pod": ("api/v1", "pods"),
    "Service": ("api/v1", "services"),
    "PersistentVolumeClaim": ("api/v1", "persistentvolumeclaims"),
    "PodDisruptionBudget": ("apis/policy/v1", "poddisruptionbudgets"),
    "NetworkPolicy": ("apis/networking.k8s.io/v1", "networkpolicies"),
    "Deployment": ("apis/apps/v1", "deployments"),
    "Lease": ("apis/coordination.k8s.io/v1", "leases"),
    "Event": ("api/v1", "events"),
    "ModelDeployment": (f"apis/{API_VERSION}", PLURAL),
}


class ApiError(Exception):
    """The API server refused a request, or didn't answer (status 0)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def path(kind: str, namespace: str | None, name: str = "", subresource: str = "") -> str:
    """The path of an object, or of a list (in all namespaces when `namespace` is None)."""
    base, plural = _RESOURCES[kind]
    parts = [base, *(("namespaces", namespace) if namespace else ()), plural, name, subresource]
    return "/" + "/".join(part for part in parts if part)


class NotLeader(Exception):
    """This process may not write: its lease has run out, or the API server knows another holder."""


class Api:
    """One connection to one API server, as one user."""

    def __init__(self, client: kube.ApiClient, metrics: Metrics) -> None:
        self._client = client
        self._metrics = metrics
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=client.rest_client.ssl_context, keepalive_timeout=_IDLE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=1 << 20,
        )
        # Found out once: the session would ask the environment for each request, in another thread.
        self._proxy = client.configuration.proxy or _proxy_for(client.configuration.host)
        self.fence: Callable[[], None] = lambda: None

    @classmethod
    async def connect(cls, metrics: Metrics) -> "Api":
        """With the pod's service account, or KUBECONFIG as kubectl reads it. ConnectionError when there is neither."""
        configuration = kube.Configuration()
        try:
            kube_config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except kube_config.ConfigException:
            try:
                await kube_config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            except kube_config.ConfigException as error:
                text = "no cluster: neither a pod's service account nor a usable KUBECONFIG is here"
                raise ConnectionError(f"{text} ({error})") from None
        return cls(kube.ApiClient(configuration), metrics)

    async def close(self) -> None:
        await self._session.close()
        await self._client.close()  # type: ignore[no-untyped-call]

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any]:
        return await self._json("GET", path(kind, namespace, name), kind)

    async def objects(self, kind: str, namespace: str | None, selector: str = "") -> AsyncIterator[dict[str, Any]]:
        """All objects of a kind, fetched in pieces."""
        more = ""
        while True:
            query = {"limit": _CHUNK, "labelSelector": selector, "continue": more}
            page = await self._json("GET", path(kind, namespace), kind, {k: v for k, v in query.items() if v})
            for item in page["items"]:
                # Items of a list don't say what they are.
                yield {"kind": kind, "apiVersion": page["apiVersion"], **item}
            more = page["metadata"].get("continue", "")
            if not more:
                return

    async def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        where = path(body["kind"], body["metadata"]["namespace"])
        return await self._write("POST", where, body["kind"], body, "application/json", {"fieldManager": FIELD_MANAGER})

    async def apply(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Server-side apply: what we set is ours, whoever set it before."""
        metadata = body["metadata"]
        return await self._write(
            "PATCH",
            path(body["kind"], metadata["namespace"], metadata["name"]),
            body["kind"],
            body,
            "application/apply-patch+yaml",
            {"fieldManager": FIELD_MANAGER, "force": "true"},
        )

    async def merge(self, kind: str, namespace: str, name: str, patch: Mapping[str, Any]) -> dict[str, Any]:
        """A JSON merge patch; with metadata.uid or resourceVersion in it, refused unless they are the object's."""
        where = path(kind, namespace, name)
        query = {"fieldManager": FIELD_MANAGER}
        return await self._write("PATCH", where, kind, patch, "application/merge-patch+json", query)

    async def replace(self, body: Mapping[str, Any], subresource: str = "") -> dict[str, Any]:
        """Puts an object; refused when its resourceVersion is no longer the present one."""
        metadata = body["metadata"]
        where = path(body["kind"], metadata["namespace"], metadata["name"], subresource)
        return await self._write("PUT", where, body["kind"], body, "application/json", {"fieldManager": FIELD_MANAGER})

    async def delete(self, kind: str, namespace: str, name: str, uid: str, grace: int | None = None) -> dict[str, Any]:
        """Deletes the object if it still is the one with this uid."""
        options: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
        }
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        return await self._write("DELETE", path(kind, namespace, name), kind, options, "application/json", {})

    async def log_tail(self, namespace: str, pod: str, container: str, lines: int) -> str:
        """The last lines that a container wrote."""
        query = {"container": container, "tailLines": lines, "limitBytes": 16384}
        _, content = await self._send("GET", path("Pod", namespace, pod, "log"), "Pod", query, None, "", LOG_SECONDS)
        return content.decode(errors="replace")

    async def _write(
        self, method: str, where: str, kind: str, body: Mapping[str, Any], content_type: str, query: Mapping[str, Any]
    ) -> dict[str, Any]:
        self.fence()
        try:
            return await self._json(method, where, kind, query, body, content_type, WRITE_SECONDS)
        except ApiError as error:
            if error.status == 403 and NOT_HOLDER in str(error):
                raise NotLeader(str(error)) from None
            raise

    async def _json(
        self,
        method: str,
        where: str,
        kind: str,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "",
        seconds: float = READ_SECONDS,
    ) -> dict[str, Any]:
        _, content = await self._send(method, where, kind, query or {}, body, content_type, seconds)
        found: dict[str, Any] = json.loads(content)
        return found

    async def _send(
        self,
        method: str,
        where: str,
        kind: str,
        query: Mapping[str, Any],
        body: Mapping[str, Any] | None,
        content_type: str,
        seconds: float,
    ) -> tuple[int, bytes]:
        headers = {"Accept": "application/json", "User-Agent": FIELD_MANAGER}
        if content_type:
            headers["Content-Type"] = content_type
        await self._client.update_params_for_auth(headers, [], ["BearerToken"], where, method, None)
        url = self._client.configuration.host + where + (f"?{urlencode(query)}" if query else "")
        status = 0
        try:
            async with self._session.request(
                method,
                url,
                data=json.dumps(body) if body is not None else None,
                headers=headers,
                proxy=self._proxy,
                timeout=aiohttp.ClientTimeout(total=seconds),
            ) as response:
                status = response.status
                content = await response.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise ApiError(0, f"{method} {where}: {error or 'no answer in time'}") from None
        finally:
            self._metrics.requests.labels(method, kind, str(status)).inc()
        if status >= 400:
            raise ApiError(status, f"{method} {where}: {_reason(content) or status}")
        return status, content


def _proxy_for(url: str) -> str | None:
    """The proxy that the environment names for an address, if it does."""
    address = urlsplit(url)
    return None if proxy_bypass(address.hostname or "") else getproxies().get(address.scheme)


def _reason(content: bytes) -> str:
    try:
        return str(json.loads(content)["message"])
    except (ValueError, KeyError, TypeError):
        return content[:200].decode(errors="replace")
