# SPDX-License-Identifier: Apache-2.0
"""The four registry clients, each as a small class with the same two verbs: push and pull."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from tests.acceptance.images import OCI, Content, Image
from tests.acceptance.sandbox import Sandbox


@dataclass(frozen=True)
class Reference:
    """A tag at a registry."""

    registry: str
    """Base URL."""
    repository: str
    tag: str = "v1"

    def __str__(self) -> str:
        return f"{urlsplit(self.registry).netloc}/{self.repository}:{self.tag}"

    def at(self, registry: str) -> Reference:
        """The same tag at another registry."""
        return Reference(registry, self.repository, self.tag)


@dataclass(frozen=True)
class Pulled:
    """What a client has after a pull: the manifest's digest, and the layers as it unpacked them."""

    digest: str
    diff_ids: tuple[str, ...]


class Client(Protocol):
    """What every client can do."""

    def push(self, image: Image, reference: Reference) -> str:
        """Push the image and return the digest of the manifest that the client made of it."""
        ...

    def pull(self, reference: Reference) -> Pulled:
        """Pull what the tag names for this machine's platform, without what was pulled before."""
        ...


class Skopeo:
    """`skopeo copy`: keeps digests, and has no storage of its own."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._folders = _fresh_folders(sandbox.folder)

    def push(self, image: Image, reference: Reference) -> str:
        folder = next(self._folders)
        if image.host.manifest.media_type == OCI.manifest:
            source = f"oci:{image.write_oci(folder / 'image', 'pushed')}:pushed"
        else:
            source = f"dir:{image.write_dir(folder / 'image')}"
        digest_file = folder / "digest"
        self._copy("--digestfile", str(digest_file), source, f"docker://{reference}")
        return digest_file.read_text()

    def pull(self, reference: Reference) -> Pulled:
        folder = self.pull_all(reference)
        manifest = folder / "manifest.json"
        document = json.loads(manifest.read_bytes())
        config = json.loads((folder / _hex(document["config"]["digest"])).read_bytes())
        return Pulled(_digest_of(manifest), tuple(config["rootfs"]["diff_ids"]))

    def pull_all(self, reference: Reference) -> Path:
        """Pull every platform into skopeo's `dir:` form, check each blob's digest."""
        folder = next(self._folders) / "pulled"
        self._copy("--all", f"docker://{reference}", f"dir:{folder}")
        for path in folder.iterdir():
            name = path.name.partition(".")[0]
            if len(name) == 64:
                assert _digest_of(path) == f"sha256:{name}"
        return folder

    def copy(self, source: Reference, target: Reference) -> None:
        """Copy from one repository to another."""
        self._copy("--all", f"docker://{source}", f"docker://{target}")

    def raw(self, reference: Reference) -> bytes:
        """The bytes of the manifest that the tag names."""
        out = self._sandbox.run(
            "skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{reference}"
        )
        return out.encode()

    def tags(self, reference: Reference) -> list[str]:
        """All tags of the repository."""
        name = str(reference).rpartition(":")[0]
        out = self._sandbox.run("skopeo", "list-tags", "--tls-verify=false", f"docker://{name}")
        tags: list[str] = json.loads(out)["Tags"]
        return tags

    def _copy(self, *arguments: str) -> None:
        insecure = ["--src-tls-verify=false", "--dest-tls-verify=false"]
        self._sandbox.run("skopeo", "copy", "--all", *insecure, *arguments)


class Podman:
    """podman with storage in the sandbox, emptied before each pull."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._folders = _fresh_folders(sandbox.folder)

    def push(self, image: Image, reference: Reference) -> str:
        folder = next(self._folders)
        layout = image.write_oci(folder / "image", "pushed")
        identity = self._run("pull", "--quiet", f"oci:{layout}:pushed")
        digest_file = folder / "digest"
        self._run(
            "push", "--tls-verify=false", "--digestfile", str(digest_file), identity, str(reference)
        )
        return digest_file.read_text()

    def pull(self, reference: Reference | str, *, registries: Path | None = None) -> Pulled:
        self._run("rmi", "--all", "--force")
        environment = {"CONTAINERS_REGISTRIES_CONF": str(registries)} if registries else None
        identity = self._run(
            "pull", "--quiet", "--tls-verify=false", str(reference), environment=environment
        )
        (image,) = json.loads(self._run("image", "inspect", identity))
        return Pulled(image["Digest"], tuple(image["RootFS"]["Layers"]))

    def _run(self, *arguments: str, environment: dict[str, str] | None = None) -> str:
        folder = self._sandbox.folder
        return self._sandbox.run(
            *("podman", "--storage-driver", "vfs", "--events-backend", "none"),
            *("--root", str(folder / "storage"), "--runroot", str(folder / "runroot")),
            *("--tmpdir", str(folder / "libpod"), *arguments),
            environment=environment,
        )


class Ctr:
    """containerd's own client; each operation in a namespace of its own, which has nothing yet."""

    def __init__(self, sandbox: Sandbox, socket: str) -> None:
        self._sandbox = sandbox
        self._socket = socket
        self._folders = _fresh_folders(sandbox.folder)
        self._namespaces = (f"n{number}" for number in itertools.count())

    def push(self, image: Image, reference: Reference) -> str:
        namespace = self.load(image, reference)
        self.push_from(namespace, reference)
        return self.digest(namespace, reference)

    def load(self, image: Image, reference: Reference) -> str:
        """Put an image into a new namespace under the reference's name, without any network."""
        namespace = next(self._namespaces)
        archive = image.write_oci_archive(next(self._folders), reference.tag)
        base = str(reference).rpartition(":")[0]
        self._images(
            namespace, "import", "--all-platforms", "--no-unpack", "--base-name", base, str(archive)
        )
        return namespace

    def push_from(self, namespace: str, reference: Reference, local: str = "") -> None:
        """Push what a namespace holds, under another local name perhaps."""
        self._images(namespace, "push", "--plain-http", str(reference), local or str(reference))

    def pull(self, reference: Reference) -> Pulled:
        namespace = self.pull_into_new(reference, "--plain-http")
        return self.pulled(namespace, reference)

    def pull_into_new(self, reference: Reference | str, *options: str) -> str:
        """Pull into a new namespace and return its name."""
        namespace = next(self._namespaces)
        self._images(namespace, "pull", *options, str(reference))
        return namespace

    def pulled(self, namespace: str, reference: Reference | str) -> Pulled:
        """What a pull has left in the namespace."""
        digest = self.digest(namespace, reference)
        manifest = self._content(namespace, digest)
        config = self._content(namespace, manifest["config"]["digest"])
        return Pulled(digest, tuple(config["rootfs"]["diff_ids"]))

    def digest(self, namespace: str, reference: Reference | str) -> str:
        """The digest that a local name stands for."""
        listing = self._images(namespace, "list", f"name=={reference}")
        (digest,) = set(re.findall(r"sha256:[0-9a-f]{64}", listing))
        return str(digest)

    def digests(self, namespace: str) -> set[str]:
        """Everything in the namespace's content store; containerd verified each when it came."""
        return set(self._run(namespace, "content", "list", "--quiet").split())

    def run(self, namespace: str, reference: Reference | str) -> str:
        """Run the image and return what it printed."""
        return self._run(
            namespace, "run", "--rm", "--net-host", "--cgroup", "", str(reference), "greeter"
        )

    def _content(self, namespace: str, digest: str) -> Any:
        return json.loads(self._run(namespace, "content", "get", digest))

    def _images(self, namespace: str, *arguments: str) -> str:
        return self._run(namespace, "images", *arguments)

    def _run(self, namespace: str, *arguments: str) -> str:
        base = ("ctr", "--address", self._socket, "--namespace", namespace)
        return self._sandbox.run(*base, *arguments)


class Docker:
    """docker with a private daemon; an image is removed before it is pulled."""

    def __init__(self, sandbox: Sandbox, address: str) -> None:
        self._sandbox = sandbox
        self._address = address
        self._folders = _fresh_folders(sandbox.folder)

    def push(self, image: Image, reference: Reference) -> str:
        archive = image.write_docker_archive(next(self._folders), str(reference))
        self._run("load", "--quiet", "--input", str(archive))
        try:
            return _announced_digest(self._run("push", str(reference)))
        finally:
            self.forget()

    def pull(self, reference: Reference | str) -> Pulled:
        self.forget()
        digest = _announced_digest(self._run("pull", str(reference)))
        layers = self._run(
            "image", "inspect", "--format", "{{json .RootFS.Layers}}", str(reference)
        )
        return Pulled(digest, tuple(json.loads(layers)))

    def run(self, reference: Reference | str) -> str:
        """Run the image and return what it printed."""
        return self._run("run", "--rm", "--network", "none", str(reference))

    def forget(self) -> None:
        """Remove every image, so that the next pull fetches every byte."""
        images = self._run("images", "--all", "--quiet", "--no-trunc").split()
        if images:
            self._run("rmi", "--force", *sorted(set(images)))

    def _run(self, *arguments: str) -> str:
        return self._sandbox.run("docker", "--host", self._address, *arguments)


def content_of(image: Image) -> set[str]:
    """Digests of everything that makes up an image."""
    parts: list[Content] = [image.top, *image.blobs(), *(p.manifest for p in image.platforms)]
    return {part.digest for part in parts}


def _announced_digest(output: str) -> str:
    found = re.search(r"[Dd]igest: (sha256:[0-9a-f]{64})", output)
    assert found is not None, f"docker told no digest:\n{output}"
    return found[1]


def _fresh_folders(base: Path) -> Iterator[Path]:
    for number in itertools.count():
        folder = base / f"work-{number}"
        folder.mkdir()
        yield folder


def _digest_of(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def _hex(digest: str) -> str:
    return digest.partition(":")[2]
