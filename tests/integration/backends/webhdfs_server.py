# SPDX-License-Identifier: Apache-2.0
"""A small HDFS: name nodes that redirect to a data node, as WebHDFS does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

from aiohttp import web
from aiohttp.test_utils import TestServer

PREFIX = "/webhdfs/v1"


class Hdfs:
    """Use `Hdfs.start`."""

    def __init__(self) -> None:
        self.cut_after: int | None = None
        self.stalled = False
        self.standby = False
        """The first name node does not serve."""
        self.loses: int = 0
        """Bytes at the end of an upload that the data node does not keep."""
        self.listed = 3
        """Names in one part of a listing."""
        self.knows_options = True
        """Whether it takes `renameoptions`."""
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.name_nodes: tuple[str, ...] = ()
        self._data_node = ""

    @classmethod
    @contextlib.asynccontextmanager
    async def start(cls) -> AsyncIterator[Self]:
        hdfs = cls()
        async with contextlib.AsyncExitStack() as stack:
            servers = []
            for handle in (hdfs._first_name_node, hdfs._name_node, hdfs._data):
                app = web.Application(client_max_size=2**30)
                app.router.add_route("*", PREFIX + "/{path:.*}", handle)
                server = TestServer(app, host="127.0.0.1")
                servers.append(await stack.enter_async_context(server))
            hdfs.name_nodes = tuple(f"127.0.0.1:{server.port}" for server in servers[:2])
            hdfs._data_node = f"127.0.0.1:{servers[2].port}"
            yield hdfs

    async def _first_name_node(self, request: web.Request) -> web.StreamResponse:
        if self.standby:
            return _failure(403, "StandbyException", "Operation category READ is not supported")
        return await self._name_node(request)

    async def _name_node(self, request: web.Request) -> web.StreamResponse:
        if self.stalled:
            await asyncio.Event().wait()
        operation, path = request.query["op"], request.match_info["path"]
        self.asked.append((operation, path))
        if request.query.get("user.name") != "shoal":
            return _failure(403, "AccessControlException", f"Permission denied: {operation}")
        if operation in ("OPEN", "CREATE"):
            url = request.url.with_host("127.0.0.1").with_port(int(self._data_node.split(":")[1]))
            return web.Response(status=307, headers={"Location": str(url)})
        operations: dict[str, Callable[[str, web.Request], web.Response]] = {
            "GETFILESTATUS": self._get_file_status,
            "LISTSTATUS_BATCH": self._list_status_batch,
            "MKDIRS": lambda *_: web.json_response({"boolean": True}),
            "RENAME": self._rename,
            "DELETE": self._delete,
        }
        if operation not in operations:
            return _failure(400, "IllegalArgumentException", f"Invalid op {operation}")
        return operations[operation](path, request)

    def _get_file_status(self, path: str, _: web.Request) -> web.Response:
        found = self._status(path)
        return _missing(path) if found is None else web.json_response({"FileStatus": found})

    def _list_status_batch(self, path: str, request: web.Request) -> web.Response:
        names = sorted(self._children(path))
        if not names:
            return _missing(path)
        rest = [name for name in names if name > request.query.get("startAfter", "")]
        part = [
            {"pathSuffix": name, **(self._status(f"{path}/{name}") or {})}
            for name in rest[: self.listed]
        ]
        listing = {
            "partialListing": {"FileStatuses": {"FileStatus": part}},
            "remainingEntries": max(0, len(rest) - self.listed),
        }
        return web.json_response({"DirectoryListing": listing})

    def _rename(self, path: str, request: web.Request) -> web.Response:
        to = request.query["destination"].lstrip("/")
        over = self.knows_options and request.query.get("renameoptions") == "OVERWRITE"
        if to in self.files and not over:
            return web.json_response({"boolean": False})
        self.files[to] = self.files.pop(path)
        return web.Response() if over else web.json_response({"boolean": True})

    def _delete(self, path: str, _: web.Request) -> web.Response:
        gone = [one for one in self.files if f"{one}/".startswith(f"{path}/")]
        for one in gone:
            del self.files[one]
        return web.json_response({"boolean": bool(gone)})

    async def _data(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        if request.query["op"] == "CREATE":
            body = await request.read()
            self.files[path] = body[: len(body) - self.loses]
            return web.Response(status=201)
        start, length = int(request.query["offset"]), int(request.query["length"])
        body = self.files[path][start : start + length]
        response = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await response.prepare(request)
        if self.cut_after is not None:
            await response.write(body[: self.cut_after])
            assert request.transport is not None
            request.transport.close()
            return response
        await response.write(body)
        return response

    def _status(self, path: str) -> dict[str, Any] | None:
        if path in self.files:
            return {"length": len(self.files[path]), "type": "FILE"}
        if self._children(path):
            return {"length": 0, "type": "DIRECTORY"}
        return None

    def _children(self, path: str) -> set[str]:
        prefix = f"{path}/" if path else ""
        return {
            one.removeprefix(prefix).partition("/")[0]
            for one in self.files
            if one.startswith(prefix)
        }


def _missing(path: str) -> web.Response:
    return _failure(404, "FileNotFoundException", f"File does not exist: /{path}")


def _failure(status: int, exception: str, message: str) -> web.Response:
    remote = {"exception": exception, "javaClassName": f"org.{exception}", "message": message}
    return web.json_response({"RemoteException": remote}, status=status)
