# SPDX-License-Identifier: Apache-2.0
"""``shoal up`` and ``shoal demo``: a whole cluster on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.failures import complain, config_faults, fail
from shoal.cli.sizes import size_in_bytes

Count = typer.Option(min=0, metavar="N")
Size = Annotated[
    int, typer.Option(parser=size_in_bytes, metavar="SIZE", help="Bytes of all layers together.")
]


def register(main: typer.Typer) -> None:
    """Add the commands."""
    main.command("up")(_up)
    main.command("demo")(_demo)


def _up(
    *,
    data_dir: Annotated[Path, typer.Option(help="Where blobs, logs and configs are kept.")],
    origins: Annotated[int, Count] = 3,
    agents: Annotated[int, Count] = 2,
    proxies: Annotated[int, Count] = 1,
    trackers: Annotated[int, Count] = 1,
    build_indexes: Annotated[int, Count] = 1,
    port_base: Annotated[
        int | None, typer.Option(metavar="PORT", help="First port of the block to use.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML with a section per role or per service."),
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Written when all services are ready.")
    ] = None,
) -> None:
    """Run a whole cluster, one process per service, until Ctrl-C or SIGTERM."""
    from shoal.cluster import interrupt
    from shoal.cluster.layout import LayoutError, Shape
    from shoal.cluster.overrides import read_overrides
    from shoal.cluster.ports import PortsTaken
    from shoal.cluster.supervisor import DataDirInUse, StartFailed
    from shoal.cluster.up import up

    try:
        shape = Shape(proxies, origins, trackers, build_indexes, agents)
        with config_faults():
            overrides = None if config is None else read_overrides(config, shape)
        interrupt.run(
            up(
                shape,
                data_dir.absolute(),
                port_base=port_base,
                overrides=overrides,
                ready_file=ready_file,
                say=typer.echo,
                complain=complain,
            )
        )
    except interrupt.Interrupted:
        return
    except (LayoutError, PortsTaken, DataDirInUse, StartFailed, OSError) as error:
        raise fail("shoal up", error) from None
    raise typer.Exit(1)


def _demo(
    size: Size = "256MiB",  # type: ignore[assignment] # typer parses the default, too
    layers: Annotated[int, typer.Option(min=1, metavar="N")] = 3,
    agents: Annotated[int, typer.Option(min=1, metavar="N")] = 4,
    origins: Annotated[int, typer.Option(min=1, metavar="N")] = 3,
) -> None:
    """Push an image and pull it through every agent at once; leaves nothing behind."""
    from rich.console import Console

    from shoal.cluster import interrupt
    from shoal.cluster.demo import DemoFailed, Plan, run
    from shoal.cluster.demo_view import View
    from shoal.cluster.layout import Shape
    from shoal.cluster.ports import PortsTaken
    from shoal.cluster.room import NoRoom
    from shoal.cluster.supervisor import StartFailed

    try:
        run(Plan(size, layers, Shape(agents=agents, origins=origins)), View(Console()))
    except interrupt.Interrupted as error:
        raise fail("demo: stopped", error, 128 + error.number) from None
    except (DemoFailed, NoRoom, PortsTaken, StartFailed, OSError) as error:
        raise fail("demo: failed", error) from None
    typer.echo("demo: ok")
