# SPDX-License-Identifier: Apache-2.0
"""Object storage that fails: a WebHDFS server over a folder, for a cluster under chaos.

It refuses one request in a few, breaks off bodies in their middle, and answers nothing at all while
it is down. What it said is stored is on the disk: it loses nothing that it acknowledged.
(WebHDFS REST API, Hadoop documentation.)
"""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

from aiohttp import web

from shoal.store.threads import in_thread

ROOT = "/webhdfs/v1"
_CHUNK = 64 * 1024


class Storage:
    """The server. Everything it stores lies below `folder`."""

    def __init__(self, folder: Path, seed: int, failing: float) -> None:
        """`failing`: the share of requests that fail, half of them in the middle of the body."""
        self._folder = folder
        self._failing = failing
        self._random = Random(f"storage/{seed}")
        self._runner: web.AppRunner | None = None
        self.up = True
        self.failures = 0
        self.address = ""

    async def listen(self, host: str) -> None:
        """Take a free port; `address` says which."""
        app = web.Application(client_max_size=1 << 40)
        app.router.add_route("*", ROOT + "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, 0)
        await site.start()
        self.address = f"{host}:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        """Answer no more."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        breaks = self._random.random() < self._failing
        if not self.up or (breaks and self._random.random() < 0.5):
            self.failures += 1
            if request.transport is not None and self._random.random() < 0.5:
                request.transport.abort()
            raise web.HTTPServiceUnavailable
        path = self._path(request.match_info["path"])
        match request.method, request.query.get("op", "").upper():
            case "GET", "GETFILESTATUS":
                return await in_thread(self._status, path)
            case "GET", "LISTSTATUS":
                return await in_thread(self._listing, path)
            case "GET", "OPEN":
                if request.query.get("data") != "true":
                    return _to_data_node(request)
                return await self._read(request, path, breaks=breaks)
            case "PUT", "CREATE":
                return await self._write(request, path)
            case "PUT", "MKDIRS":
                await in_thread(lambda: path.mkdir(parents=True, exist_ok=True))
                return web.json_response({"boolean": True})
            case "PUT", "RENAME":
                target = self._path(request.query["destination"])
                return web.json_response({"boolean": await in_thread(_rename, path, target)})
            case "DELETE", "DELETE":
                return web.json_response({"boolean": await in_thread(_delete, path)})
        raise web.HTTPBadRequest

    def _path(self, text: str) -> Path:
        parts = [part for part in text.split("/") if part not in {"", ".", ".."}]
        return self._folder.joinpath(*parts)

    def _status(self, path: Path) -> web.Response:
        return web.json_response({"FileStatus": _file_status(path, "")})

    def _listing(self, path: Path) -> web.Response:
        if not path.exists():
            raise _not_found(path)
        entries = sorted(path.iterdir()) if path.is_dir() else []
        statuses = [_file_status(entry, entry.name) for entry in entries]
        return web.json_response({"FileStatuses": {"FileStatus": statuses}})

    async def _read(self, request: web.Request, path: Path, *, breaks: bool) -> web.StreamResponse:
        data = await in_thread(_content, path)
        start = int(request.query.get("offset", "0"))
        stop = start + int(request.query["length"]) if "length" in request.query else len(data)
        data = data[start:stop]
        answer = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await answer.prepare(request)
        for begin in range(0, len(data), _CHUNK):
            if breaks and begin >= len(data) // 2:
                self.failures += 1
                if request.transport is not None:
                    request.transport.abort()
                break
            await answer.write(data[begin : begin + _CHUNK])
        return answer

    async def _write(self, request: web.Request, path: Path) -> web.Response:
        if request.query.get("data") != "true":
            return _to_data_node(request)
        temp = path.with_name(f"{path.name}.{self._random.randrange(1 << 62):x}.part")
        await in_thread(lambda: path.parent.mkdir(parents=True, exist_ok=True))
        try:
            with temp.open("wb") as file:
                async for chunk in request.content.iter_chunked(_CHUNK):
                    await in_thread(file.write, chunk)
            await in_thread(temp.replace, path)
        except ConnectionError:  # the client was killed, or cut off
            await in_thread(temp.unlink)
        return web.Response(status=201)


def _to_data_node(request: web.Request) -> web.Response:
    """The name node has no data: the same address is asked again, as a data node."""
    location = str(request.url.update_query(data="true"))
    return web.Response(status=307, headers={"Location": location})


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise _not_found(path) from None


def _file_status(path: Path, suffix: str) -> dict[str, object]:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise _not_found(path) from None
    return {
        "pathSuffix": suffix,
        "type": "DIRECTORY" if path.is_dir() else "FILE",
        "length": 0 if path.is_dir() else status.st_size,
        "modificationTime": int(status.st_mtime * 1000),
    }


def _rename(path: Path, target: Path) -> bool:
    if not path.exists() or not target.parent.is_dir():
        return False
    path.replace(target)
    return True


def _delete(path: Path) -> bool:
    if path.is_dir():
        shutil.rmtree(path)
        return True
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _not_found(path: Path) -> web.HTTPNotFound:
    return web.HTTPNotFound(
        content_type="application/json",
        text='{"RemoteException":{"exception":"FileNotFoundException","message":"no such file: '
        + path.name
        + '"}}',
    )
