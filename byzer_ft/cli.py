"""Arguments -> a session's results on a terminal: results on stdout, everything else on stderr.

Exit status: 0; 1 with an error that names file, line and column; 2 for wrong usage; 130 when interrupted. Nothing
heavy is imported before a command needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from byzer_ft import __version__
from byzer_ft.errors import ByzerError, Source

if TYPE_CHECKING:
    from byzer_ft.session import Result


class _Commands(click.Group):
    """Errors that users are meant to read end here, once: rendered on stderr, with their exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ByzerError as error:
            click.echo(error.render(), err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except BrokenPipeError:
            ctx.exit(0)  # `byzer-ft run … | head`: the reader has seen enough
        except OSError as error:
            click.echo(f"error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", err=True)
            ctx.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="byzer-ft")
def main() -> None:
    """Fine-tune and serve language models from SQL."""


@main.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path, allow_dash=True))
@click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", help="of the last result table"
)
@click.option(
    "--rows",
    type=click.IntRange(min=0),
    default=50,
    show_default=True,
    help="rows of the last table shown (table format)",
)
def run(file: Path, form: str, rows: int) -> None:
    """Run the script FILE (- for standard input) and print its last result table."""
    from byzer_ft.session import Session

    source = _read(file)
    screen = Screen(sys.stderr)
    with Session(notice=screen.line, show=screen.event) as session:
        last = None
        for result in session.run(source.text, source.name):
            screen.done(result)
            last = result if result.has_table else last
        if last is None:
            screen.line(f"{source.name}: nothing to show")
        shown = last.arrow() if last is not None else None
    _print_table(shown, form, rows)


@main.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path, allow_dash=True))
def parse(file: Path) -> None:
    """Print the typed statements of FILE as JSON; runs nothing. Exit status 1 with every error found."""
    import json

    from byzer_ft.sql import parse as read_statements
    from byzer_ft.sql import parse_json

    statements = read_statements(_read(file))
    click.echo(json.dumps(parse_json(statements), ensure_ascii=False, indent=2))


@main.command()
def jobs() -> None:
    """List the owner's jobs, the newest first."""
    _one_statement(
        "!show jobs;", ["name", "state", "step", "total_steps", "loss", "output_table", "created_at", "reason"]
    )


@main.command()
def models() -> None:
    """List the owner's model tables."""
    _one_statement("!show models;", ["name", "state", "kind", "version", "place", "base", "reason"])


@main.command()
def start() -> None:
    """Run a Ray in the background that jobs and deployments outlive this terminal on."""
    from byzer_ft.jobs.head import start as start_head
    from byzer_ft.settings import load_settings

    settings = load_settings()
    record = start_head(settings)
    click.echo(f"Ray runs for {settings.home} at {record['address']}, process {record['pid']}")
    if record.get("dashboard"):
        click.echo(f"dashboard: {record['dashboard']} (it asks for the token that `ray get-auth-token` prints)")


@main.command()
def stop() -> None:
    """Stop that Ray, its jobs and deployments."""
    from byzer_ft.jobs.head import stop as stop_head
    from byzer_ft.settings import load_settings

    click.echo(f"stopped process {stop_head(load_settings())}")


@main.command()
def status() -> None:
    """Say whether a Ray runs for this home, and where."""
    from byzer_ft.jobs.cluster import running
    from byzer_ft.settings import load_settings

    settings = load_settings()
    record = running(settings.home)
    if record is None:
        click.echo(f"no Ray runs for {settings.home}")
        return
    kept = "in the background" if record.get("background") else "by a session"
    click.echo(f"Ray runs for {settings.home} at {record['address']}, kept {kept}, process {record['pid']}")


def _one_statement(sql: str, columns: list[str]) -> None:
    from byzer_ft.session import Session

    with Session() as session:
        _print_table(session.sql(sql).arrow().select(columns), "table", 1000)


def _print_table(table: Any, form: str, rows: int) -> None:
    from byzer_ft.render import table_json, table_text

    if table is None:
        if form == "json":
            click.echo("[]")
        return
    click.echo(table_json(table) if form == "json" else table_text(table, max_rows=rows))


def _read(file: Path) -> Source:
    from byzer_ft.errors import NotFoundError, SqlError

    if str(file) == "-":
        return Source(sys.stdin.read(), "<stdin>")
    try:
        return Source(file.read_text("utf-8-sig"), str(file))
    except FileNotFoundError:
        raise NotFoundError(f"there is no script {file}") from None
    except UnicodeDecodeError as error:
        raise SqlError(f"{file} is not UTF-8: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise NotFoundError(f"script {file} cannot be read: {error.strerror}") from None


class Screen:
    """Lines and one live progress line on a terminal; on anything else, plain lines at a bearable rate."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._open = False  # a progress line stands without its line feed
        self._last = 0.0

    def line(self, text: str) -> None:
        from byzer_ft.render import printable

        self._finish_line()
        for part in text.split("\n"):
            self._stream.write(printable(part) + "\n")
        self._stream.flush()

    def event(self, event: Mapping[str, Any]) -> None:
        from byzer_ft.render import event_text

        text = event_text(event)
        if not text:
            return
        if event.get("event") != "progress":
            self.line(text)
        elif self._live:
            self._stream.write("\r\x1b[2K" + text)
            self._stream.flush()
            self._open = True
        else:
            self._sometimes(text, last=event["step"] == event["total_steps"])

    def done(self, result: Result) -> None:
        if result.message and result.kind not in ("load", "select", "set", "setup", "show"):
            self.line(result.message)

    def _sometimes(self, text: str, *, last: bool, seconds: float = 5.0) -> None:
        import time

        if last or time.monotonic() - self._last >= seconds:
            self._last = time.monotonic()
            self.line(text)

    def _finish_line(self) -> None:
        if self._open:
            self._stream.write("\n")
            self._open = False


if __name__ == "__main__":
    main()
