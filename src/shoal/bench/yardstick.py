# SPDX-License-Identifier: Apache-2.0
"""What is compared with: dd for durable copies, nginx for files from the page cache."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from shoal.cluster.layout import BLOCK, HOST
from shoal.cluster.ports import reserve

COPIES = 3
_START_WITHIN = 10.0


class YardstickFailed(Exception):
    """The other program could not be run; the message holds what it said."""


async def durable_copies(source: Path, folder: Path) -> float:
    """Seconds that one command line of dd takes for three copies, each with its fsync."""
    copies = [folder / f"copy-{number}" for number in range(COPIES)]
    command = " && ".join(
        f"dd if={shlex.quote(str(source))} of={shlex.quote(str(copy))} bs=1M conv=fsync status=none"
        for copy in copies
    )
    try:
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", command, stderr=asyncio.subprocess.PIPE
        )
        try:
            _, complaint = await process.communicate()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        wall_s = time.perf_counter() - began
    finally:
        for copy in copies:
            copy.unlink(missing_ok=True)
    if process.returncode != 0:
        raise YardstickFailed(f"{command}: {complaint.decode(errors='replace').strip()}")
    return wall_s


@asynccontextmanager
async def nginx(folder: Path) -> AsyncIterator[str | None]:
    """Serve a folder on loopback by nginx; its base URL, or None when there is no nginx."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        yield None
        return
    with reserve(BLOCK) as ports:
        port = ports.first + 1
        config = folder / "nginx.conf"
        config.write_text(_nginx_config(folder, port))
        process = await asyncio.create_subprocess_exec(
            *(program, "-p", str(folder), "-c", str(config), "-e", str(folder / "nginx.log")),
            stdin=asyncio.subprocess.DEVNULL,
        )
        try:
            await _listening(process, port, folder / "nginx.log")
            yield f"http://{HOST}:{port}"
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


def _nginx_config(folder: Path, port: int) -> str:
    # As root, nginx would serve as nobody, who may not read a temporary folder.
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = " ".join(
        f"{kind}_temp_path {folder}/nginx-{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
daemon off; {user} worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 64; }}
http {{
    {temporary}
    access_log off; sendfile on; tcp_nopush on; default_type application/octet-stream;
    server {{ listen {HOST}:{port}; root {folder}; }}
}}
"""


async def _listening(process: asyncio.subprocess.Process, port: int, log: Path) -> None:
    async with asyncio.timeout(_START_WITHIN):
        while process.returncode is None:
            try:
                _, writer = await asyncio.open_connection(HOST, port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            await writer.wait_closed()
            return
    raise YardstickFailed(f"nginx exited with status {process.returncode}; see {log}")
