"""The log as files elsewhere: exported, checked, and restored from there."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.checking import KeyOption, check_archive, progress_bar, tell_findings, verifier_of
from gateway.cli.context import DEFAULT_CONFIG, ConfigOption, JsonOption, office, print_json, say
from ledger_client import ArchiveReader, export, open_source, open_store, prove_equal, restore

archive = typer.Typer(no_args_is_help=True, help="The log as static files in a folder or an S3-compatible store.")

Destination = Annotated[str, typer.Argument(metavar="DIR|s3://BUCKET/PREFIX", help="Where the files go.")]
Origin = Annotated[str, typer.Argument(metavar="DIR|URL|s3://BUCKET/PREFIX", help="Where the files are.")]


@archive.command("export")
def export_log(destination: Destination, config: ConfigOption = DEFAULT_CONFIG, *, as_json: JsonOption = False) -> None:
    """Bring an archive up to the log's newest checkpoint; what is there already is not written again."""
    with office(config) as o, o.database.read() as connection, progress_bar("entries archived") as tell:
        done = export(o.log, connection, open_store(destination), o.signer.verifier, tell)
    if as_json:
        print_json(vars(done))
    else:
        say(f"archived {done.size} entries, {done.size - done.before} of them new: {done.files} files written")


@archive.command("restore")
def restore_log(origin: Origin, config: ConfigOption = DEFAULT_CONFIG, *, as_json: JsonOption = False) -> None:
    """Write an archived log into a new database, as it was signed, and prove it equal. The configured key must fit it.

    The log alone comes back: balances and intents follow from it, but are not rebuilt.
    """
    with office(config) as o:
        reader = ArchiveReader(open_source(origin), o.signer.verifier)
        with o.database.write() as connection, progress_bar("entries restored") as tell:
            restore(reader, o.log, connection, tell)
        with o.database.read() as connection, progress_bar("entries compared") as tell:
            checkpoint = prove_equal(reader, o.log, connection, tell)
    root = checkpoint.root.hex()
    if as_json:
        print_json({"ok": True, "entries": checkpoint.size, "root": root})
    else:
        say(f"restored {checkpoint.size} entries, equal to the archive in every file: root {root}")


@archive.command("check")
def check_log(
    origin: Origin, key: KeyOption = None, config: ConfigOption = DEFAULT_CONFIG, *, as_json: JsonOption = False
) -> None:
    """Check an archive with nothing but the log's verifier key, as fsck --from-tiles does."""
    size, findings = check_archive(origin, verifier_of(key, config))
    tell_findings(size, findings, as_json=as_json)
