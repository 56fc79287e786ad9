# SPDX-License-Identifier: Apache-2.0
"""The registry clients, each as a small class with the same three verbs: push, pull and copy."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol
from urllib.parse import urlsplit

from tests.acceptance.images import OCI, Content, Image
from tests.acceptance.sandbox import Sandbox

_INSECURE: Final = "--tls-verify=false"
_DESTINATION_INSECURE: Final = "--dest-tls-verify=false"


@dataclass(frozen=True)
class Reference:
    """A tag at a registry."""

    registry: str
    """Base URL."""
    repository: str
    tag: str = "v1"

    def __str__(self) -> str:
        return f"{self.name}:{self.tag}"

    @property
    def name(self) -> str:
        """Registry and repository, without the tag."""
        return f"{urlsplit(self.registry).netloc}/{self.repository}"

    def tagged(self, tag: str) -> Reference:
        """Another tag of the repository."""
        return Reference(self.registry, self.repository, tag)

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

    def copy(self, source: Reference, target: Reference) -> None:
        """Bring what one tag names into another repository of the same registry."""
        ...


class Skopeo:
    """`skopeo copy`: keeps digests, and has no storage of its own."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._folders = _fresh_folders(sandbox.folder)

    def push(
        self,
        image: Image,
        reference: Reference,
        *,
        credentials: str = "",
        certificates: Path | None = None,
    ) -> str:
        """Push the image; `credentials` are ``user:password``.

        `certificates`: a folder with ``ca.crt``, by which the registry is checked, and, for those
        who have one, a certificate of their own (``client.cert`` and ``client.key``).
        """
        folder = next(self._folders)
        if image.host.manifest.media_type == OCI.manifest:
            source = f"oci:{image.write_oci(folder / 'image', 'pushed')}:pushed"
        else:
            source = f"dir:{image.write_dir(folder / 'image')}"
        digest_file = folder / "digest"
        login = ["--dest-creds", credentials] if credentials else []
        secured = [] if certificates is None else ["--dest-cert-dir", str(certificates)]
        self._copy(
            *("--digestfile", str(digest_file), *login, source, f"docker://{reference}"),
            destination=secured or [_DESTINATION_INSECURE],
        )
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
        self._copy(f"docker://{source}", f"docker://{target}")

    def sync(self, source: Reference, registry: str) -> None:
        """Copy every tag of a repository below a path at another registry."""
        flags = ["--all", "--src", "docker", "--dest", "docker"]
        insecure = ["--src-tls-verify=false", "--dest-tls-verify=false"]
        self._sandbox.run("skopeo", "sync", *flags, *insecure, source.name, registry)

    def delete(self, reference: Reference) -> None:
        """Delete the manifest that the tag names."""
        self._sandbox.run("skopeo", "delete", _INSECURE, f"docker://{reference}")

    def inspect(self, reference: Reference) -> Any:
        """What skopeo finds about the tag, its image and its repository."""
        return json.loads(
            self._sandbox.run("skopeo", "inspect", _INSECURE, f"docker://{reference}")
        )

    def raw(self, reference: Reference) -> bytes:
        """The bytes of the manifest that the tag names."""
        out = self._sandbox.run("skopeo", "inspect", "--raw", _INSECURE, f"docker://{reference}")
        return out.encode()

    def tags(self, reference: Reference) -> list[str]:
        """All tags of the repository."""
        out = self._sandbox.run("skopeo", "list-tags", _INSECURE, f"docker://{reference.name}")
        tags: list[str] = json.loads(out)["Tags"]
        return tags

    def _copy(self, *arguments: str, destination: Sequence[str] = (_DESTINATION_INSECURE,)) -> None:
        verify = ["--src-tls-verify=false", *destination]
        self._sandbox.run("skopeo", "copy", "--all", *verify, *arguments)


class _ContainersStorage(ABC):
    """podman or buildah, with storage in the sandbox, emptied before each pull."""

    _COMMAND: ClassVar[tuple[str, ...]]

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._folders = _fresh_folders(sandbox.folder)

    def push(self, image: Image, reference: Reference) -> str:
        layout = image.write_oci(next(self._folders) / "image", "pushed")
        return self.push_local(self._run("pull", "--quiet", f"oci:{layout}:pushed"), reference)

    def pull(self, reference: Reference | str, *, registries: Path | None = None) -> Pulled:
        self._run("rmi", "--all", "--force")
        environment = {"CONTAINERS_REGISTRIES_CONF": str(registries)} if registries else None
        return self._pulled(
            self._run("pull", "--quiet", _INSECURE, str(reference), environment=environment)
        )

    def copy(self, source: Reference, target: Reference) -> None:
        self.pull(source)
        self.push_local(str(source), target)

    def push_local(self, name: str, reference: Reference) -> str:
        """Push what is in the storage and return its digest."""
        digest_file = next(self._folders) / "digest"
        self._run(
            "push", _INSECURE, "--digestfile", str(digest_file), name, f"docker://{reference}"
        )
        return digest_file.read_text()

    def push_index(self, images: Sequence[Reference], reference: Reference) -> None:
        """Make an index of images at the registry and push it with all of them."""
        index = f"localhost/{next(self._folders).name}"
        self._run("manifest", "create", index)
        for image in images:
            self._run("manifest", "add", _INSECURE, index, f"docker://{image}")
        self._run("manifest", "push", "--all", _INSECURE, index, f"docker://{reference}")

    @abstractmethod
    def _pulled(self, identity: str) -> Pulled: ...

    def _run(self, *arguments: str, environment: dict[str, str] | None = None) -> str:
        folder = self._sandbox.folder
        return self._sandbox.run(
            *self._COMMAND,
            *("--storage-driver", "vfs", "--root", str(folder / "storage")),
            *("--runroot", str(folder / "runroot"), *arguments),
            environment=environment,
        )


class Podman(_ContainersStorage):
    """podman, without a service."""

    _COMMAND = ("podman", "--events-backend", "none")

    def tags(self, reference: Reference) -> list[str]:
        """All tags of the repository."""
        (found,) = self._search("--list-tags", reference.name)
        tags: list[str] = found["Tags"]
        return tags

    def repositories(self, reference: Reference) -> list[str]:
        """Names, with the registry's, of the repositories that hold the reference's name."""
        return [found["Name"] for found in self._search(reference.name)]

    def _search(self, *arguments: str) -> list[dict[str, Any]]:
        out = self._run("search", _INSECURE, "--format", "json", *arguments)
        found: list[dict[str, Any]] = json.loads(out)
        return found

    def _pulled(self, identity: str) -> Pulled:
        (image,) = json.loads(self._run("image", "inspect", identity))
        return Pulled(image["Digest"], tuple(image["RootFS"]["Layers"]))


class Buildah(_ContainersStorage):
    """buildah, which also makes images."""

    _COMMAND = ("buildah",)

    def build(self, files: dict[Path, str]) -> str:
        """Make an image of files and the paths that they get, without running anything in it."""
        container = self._run("from", "scratch")
        for source, path in files.items():
            self._run("add", container, str(source), path)
        return self._run("commit", "--quiet", "--rm", container)

    def _pulled(self, identity: str) -> Pulled:
        image = json.loads(self._run("inspect", "--type", "image", identity))
        return Pulled(image["FromImageDigest"], tuple(image["OCIv1"]["rootfs"]["diff_ids"]))


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
        options = ("--all-platforms", "--no-unpack", "--base-name", reference.name)
        self._images(namespace, "import", *options, str(archive))
        return namespace

    def push_from(self, namespace: str, reference: Reference, local: str = "") -> None:
        """Push what a namespace holds, under another local name perhaps."""
        self._images(namespace, "push", "--plain-http", str(reference), local or str(reference))

    def pull(self, reference: Reference) -> Pulled:
        namespace = self.pull_into_new(reference, "--plain-http")
        return self.pulled(namespace, reference)

    def copy(self, source: Reference, target: Reference) -> None:
        namespace = self.pull_into_new(source, "--plain-http", "--all-platforms")
        self.push_from(namespace, target, str(source))

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
        return Pulled(digest, self.has(reference))

    def has(self, reference: Reference | str) -> tuple[str, ...]:
        """The layers of an image that it has."""
        layers = self._run(
            "image", "inspect", "--format", "{{json .RootFS.Layers}}", str(reference)
        )
        return tuple(json.loads(layers))

    def copy(self, source: Reference, target: Reference) -> None:
        self.pull(source)
        self._run("tag", str(source), str(target))
        self._run("push", str(target))

    def pull_all_tags(self, reference: Reference) -> list[str]:
        """Pull every tag of the repository and return their names."""
        self.forget()
        self._run("pull", "--quiet", "--all-tags", reference.name)
        return self._run("image", "ls", "--format", "{{.Tag}}", reference.name).split()

    def manifest(self, reference: Reference) -> Any:
        """The manifest that the tag names, as docker shows it."""
        return json.loads(self._run("manifest", "inspect", "--insecure", str(reference)))

    def push_index(self, images: Sequence[Reference], reference: Reference) -> None:
        """Make an index of images at the registry and push it."""
        self._run("manifest", "create", "--insecure", str(reference), *map(str, images))
        self._run("manifest", "push", "--insecure", "--purge", str(reference))

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
