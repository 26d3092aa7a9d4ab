"""Commands for operators who ask why, and for those who only have redis-cli: explain, deploy-functions."""

from __future__ import annotations

from typing import Annotated

import typer

from distier.errors import ConfigError, DistierError

from . import output
from .modules import Ids, Zero
from .session import ids_from, session_of


def register(app: typer.Typer) -> None:
    app.command("explain")(explain)
    app.command("deploy-functions")(deploy_functions)


def explain(context: typer.Context, ids: Ids, zero: Zero = False) -> None:
    """Say why modules are where they are, and what would be evicted before them. Does not count as a use."""
    from distier.views import explained_text, explained_view

    session = session_of(context)
    with session.look() as store:

        def one(id: str) -> None:
            found = store.explain(id)
            if found is None:
                session.missing(store, id)
            else:
                session.print_result(explained_view(found), output.shown(id) + explained_text(found)[len(id) :])

        session.each(ids_from(ids, zero), one)
    session.end()


def deploy_functions(
    context: typer.Context,
    show: Annotated[
        bool, typer.Option("--print", help="Print the library instead, for `redis-cli -x FUNCTION LOAD REPLACE`.")
    ] = False,
) -> None:
    """Load the functions with which redis-cli alone answers what operators ask. `FCALL_RO distier_help 0` lists them."""
    from distier import __version__
    from distier.lua.library import library

    session = session_of(context)
    if show:
        print(library(__version__), end="")
        return
    from distier.lua.deploy import deploy

    with session.look() as store:
        failure: DistierError | None = None
        for shard in store.space.keys.shards:
            try:
                done = store.run(deploy(shard, __version__))
            except ConfigError as e:
                failure = ConfigError(f"{e}. FUNCTION LOAD needs a user with the role `deployer`")
                break
            text = f"{shard.root} has library {done.now}" + (f", before {done.before}" if done.before else "")
            session.print_result({"shard": shard.root, "before": done.before, "now": done.now}, text)
        if failure is not None:
            raise failure
