"""Keys, certificates, tokens and kubeconfigs of a cluster, made with openssl; good for tests and nothing else."""

from collections.abc import Iterable
from pathlib import Path

from cluster.processes import run

_DAYS = "30"


class Pki:
    """The files below `folder`; `server` is the API server's URL."""

    def __init__(self, folder: Path, server: str) -> None:
        self.folder = folder
        self.server = server
        folder.mkdir(parents=True, exist_ok=True)
        self.ca = folder / "ca.crt"

    def make(self, names: Iterable[str], users: Iterable[tuple[str, str, str]]) -> None:
        """Makes the authority, the API server's certificate for `names` (as in subjectAltName) and a token for each of
        `users` (short name, user name, group). What exists is kept."""
        if not self.ca.exists():
            self._key("sa")
            run("openssl", "ec", "-in", self.folder / "sa.key", "-pubout", "-out", self.folder / "sa.pub")
            self._key("ca")
            run(
                "openssl", "req", "-x509", "-new", "-key", self.folder / "ca.key", "-out", self.ca,
                "-subj", "/CN=oarlock-test", "-days", _DAYS, "-addext", "keyUsage=critical,keyCertSign,cRLSign",
            )  # fmt: skip
            self._certificate("api", "/CN=kube-apiserver", ",".join(names))
            self._certificate("kubelet-client", "/O=system:masters/CN=apiserver-kubelet-client", "DNS:none")
        lines = []
        for short, user, group in users:
            lines.append(f'{short}-token,{user},{short},"{group}"')
            self.kubeconfig(short).write_text(self._kubeconfig(f"{short}-token"))
        (self.folder / "tokens.csv").write_text("\n".join(lines) + "\n")

    def kubeconfig(self, user: str) -> Path:
        return self.folder / f"{user}.kubeconfig"

    def _key(self, name: str) -> None:
        run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", self.folder / f"{name}.key")

    def _certificate(self, name: str, subject: str, names: str) -> None:
        self._key(name)
        request = run("openssl", "req", "-new", "-key", self.folder / f"{name}.key", "-subj", subject)
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n")
        run(
            "openssl", "x509", "-req", "-CA", self.ca, "-CAkey", self.folder / "ca.key", "-CAcreateserial",
            "-days", _DAYS, "-extfile", extensions, "-out", self.folder / f"{name}.crt", given=request,
        )  # fmt: skip

    def _kubeconfig(self, token: str) -> str:
        return (
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n"
            f'clusters: [{{name: test, cluster: {{server: "{self.server}", certificate-authority: {self.ca}}}}}]\n'
            f"users: [{{name: test, user: {{token: {token}}}}}]\n"
            "contexts: [{name: test, context: {cluster: test, user: test}}]\n"
        )
