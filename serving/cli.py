"""The commands ``serve`` and ``inspect``."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, get_args

import click
from click.core import ParameterSource

from serving import memory
from serving.beside import PageOptions
from serving.logs import LogFormat, set_up_serving_logs
from serving.recording_options import audit_options, audit_settings
from serving.settings import DriftMode, ServerSettings, is_loopback, parse_stations
from serving.tuned import read_tuned
from vision.bundle import load_bundle
from vision.console import EXIT_FAILURE, exits_cleanly, finish, json_option, say
from vision.engine import PRECISIONS
from vision.errors import SettingsError

_DEFAULTS = {name: field.default for name, field in ServerSettings.__dataclass_fields__.items()}
_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.option(
    "--bundle",
    "bundles",
    type=_FOLDER,
    required=True,
    multiple=True,
    help="Folder that `defectlens export` wrote. Repeat it for more models; the first is the default one.",
)
@click.option("--watch", type=_FOLDER, help="Folder of bundles: whatever is copied into it is served at once.")
@click.option("--admin", metavar="ADDR", help="HOST:PORT for `defectlens models`; keep it from the cameras' network.")
@click.option(
    "--address",
    default=_DEFAULTS["address"],
    show_default=True,
    help="HOST:PORT, port 0 takes a free one; or unix:/PATH.",
)
@click.option(
    "--provider",
    type=click.Choice(list(PRECISIONS)),
    default=_DEFAULTS["provider"],
    show_default=True,
    help="Where the model runs.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS["openvino"]),
    default=_DEFAULTS["precision"],
    show_default=True,
    help="What it computes in; below fp32 it must show on the bundle's check frames that its verdicts are as good.",
)
@click.option("--tuned", type=_FILE, help="File that `defectlens tune` wrote; options that are given go before it.")
@click.option("--gpu-memory-mib", type=int, default=0, help="Most GPU memory for the model's work; 0 sets no limit.")
@click.option(
    "--engine-cache", type=_FOLDER, help="Where TensorRT and OpenVINO keep what they built, for quicker starts."
)
@click.option("--strict-provider", is_flag=True, help="Refuse to start on another provider or precision.")
@click.option(
    "--max-batch", type=int, default=_DEFAULTS["max_batch"], show_default=True, help="Frames in one inference at most."
)
@click.option(
    "--max-wait-ms",
    type=float,
    default=_DEFAULTS["max_wait_ms"],
    show_default=True,
    help="How long a frame waits at most for others that are on their way, to share an inference.",
)
@click.option(
    "--max-queue", type=int, default=_DEFAULTS["max_queue"], show_default=True, help="Frames in work at once, over all."
)
@click.option(
    "--threads", type=int, default=_DEFAULTS["threads"], help="CPU threads of an inference; 0 chooses itself."
)
@click.option("--max-pixels", type=int, default=_DEFAULTS["max_pixels"], show_default=True, help="Of one frame.")
@click.option(
    "--max-shared-bytes",
    type=int,
    default=_DEFAULTS["max_shared_bytes"],
    show_default=True,
    help="Memory that cameras on this machine may share, all together; 0 for none.",
)
@click.option(
    "--fast-decode",
    is_flag=True,
    help="Decode JPEGs much larger than the model's input at a reduced scale; changes scores (docs/experiments.md).",
)
@click.option(
    "--drain-seconds",
    type=float,
    default=_DEFAULTS["drain_seconds"],
    show_default=True,
    help="How long the end waits for accepted frames.",
)
@click.option(
    "--metrics", metavar="HOST:PORT", help="Serve Prometheus metrics over HTTP here; port 0 takes a free one."
)
@click.option(
    "--traces", metavar="URL", help="Send OpenTelemetry spans to this OTLP/gRPC collector; needs the extra `otel`."
)
@click.option(
    "--drift",
    type=click.Choice(get_args(DriftMode)),
    default=_DEFAULTS["drift"],
    show_default=True,
    help="Compare cameras with the calibration's frames and their own first ones, with their own alone, or not at all.",
)
@click.option(
    "--drift-frames-per-alarm",
    type=int,
    default=_DEFAULTS["drift_frames_per_alarm"],
    show_default=True,
    help="At most one false alarm of a camera in so many frames on average; fewer frames notice changes sooner.",
)
@click.option(
    "--station",
    "stations",
    multiple=True,
    metavar="NAME[=CAMERA,...]",
    help="A station that is checked with master parts, and its cameras. Repeat it for more.",
)
@click.option("--station-log", type=_FILE, help="Where checks and overrides of stations are written to; JSON lines.")
@click.option("--override-token-file", type=_FILE, help="Holds the token that `defectlens override` has to know.")
@audit_options
@click.option("--inspector", is_flag=True, help="Serve the inspector's page too, over the --audit store.")
@click.option("--inspector-host", metavar="HOST", help="Where it listens. Default: 127.0.0.1")
@click.option("--inspector-port", type=click.IntRange(0, 65535), help="Default: 8080; 0 takes a free one.")
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Of the log on stderr."
)
@click.option("--ready-file", type=_FILE, help="Write the bound address here once ready; removed at the end.")
@click.option("--verbose", is_flag=True, help="Log every frame.")
@json_option
@click.pass_context
@exits_cleanly
def serve(
    context: click.Context,
    /,
    bundles: tuple[Path, ...],
    ready_file: Path | None,
    verbose: bool,
    log_format: LogFormat,
    tuned: Path | None,
    stations: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Serve bundles over gRPC until SIGTERM or Ctrl-C, then answer what was accepted and end.

    \b
    Example:
      defectlens serve --bundle bundles/parts --address 0.0.0.0:50051
      defectlens serve --bundle bundles/parts --provider openvino --precision bf16
      defectlens serve --bundle bundles/parts --watch bundles --admin 127.0.0.1:50052
      defectlens serve --bundle bundles/parts --admin 127.0.0.1:50052 --station press-3=left,right \\
        --station-log stations.jsonl --override-token-file token
      defectlens serve --bundle bundles/parts --audit audit --inspector --admin 127.0.0.1:50052
    """
    set_up_serving_logs(log_format, verbose=verbose)
    if tuned is not None:
        options |= _tuned_options(context, tuned, bundles[0])
    settings = ServerSettings(
        bundle=bundles[0],
        further_bundles=bundles[1:],
        stations=parse_stations(stations),
        audit=audit_settings(options),
        page=_page_options(options),
        **options,
    )
    if settings.admin is not None and not is_loopback(settings.admin):
        say(f"warning: whoever reaches {settings.admin} can change the models; there is no authentication")
    if not settings.is_loopback:
        say(
            f"warning: {settings.address} can be reached from other machines, and frames and verdicts travel there "
            "unencrypted and without authentication; use a trusted network or a TLS proxy"
        )
    with asyncio.Runner(loop_factory=_fast_loop()) as runner:
        figures = runner.run(_serve(settings, ready_file))
    if as_json:
        finish(figures, as_json=True)


def _page_options(options: dict[str, Any]) -> PageOptions | None:
    """Take the page's options out of the command's; None where no page is wanted."""
    wanted = options.pop("inspector")
    given = {name: options.pop(f"inspector_{name}") for name in ("host", "port")}
    given = {name: value for name, value in given.items() if value is not None}
    if given and not wanted:
        raise SettingsError("--inspector-host and --inspector-port say where the page is; add --inspector to have one")
    return PageOptions(**given) if wanted else None


def _tuned_options(context: click.Context, path: Path, folder: Path) -> dict[str, Any]:
    """What the file says, but for what was given on the command line."""
    found = read_tuned(path)
    found.check(path, load_bundle(folder).manifest.model_digest)
    chosen = found.settings()
    given = [name for name in chosen if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
    if given:
        say(f"not taken from {path}, because given: {', '.join(given)}")
    # A precision belongs to its provider: one alone from the file could make a pair that nobody measured.
    left_out = {"provider", "precision"} if {"provider", "precision"} & set(given) else set()
    return {name: value for name, value in chosen.items() if name not in left_out and name not in given}


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, which turns faster (docs/experiments.md); Python's own where it cannot be had, as on Windows."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _serve(settings: ServerSettings, ready_file: Path | None) -> dict[str, Any]:
    """Serve until a signal; what was answered."""
    # gRPC's core would print its own lines about errors that we report in words.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from serving.server import InspectionServer  # loads gRPC, which `--help` need not

    memory.use_few_heaps()
    server = InspectionServer(settings)
    if ready_file is not None:
        ready_file.unlink(missing_ok=True)
    await server.start()
    memory.settle()
    loop = asyncio.get_running_loop()

    def end() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):  # a second signal ends at once
            loop.remove_signal_handler(number)
        server.begin_stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    try:
        if ready_file is not None:
            part = ready_file.with_name(ready_file.name + ".part")
            part.write_text(server.address + "\n")
            part.replace(ready_file)  # whoever waits for the file never reads half an address
        info = server.info
        note = " (FALLBACK)" if info.provider_fallback else ""
        runs_on = f"{info.provider} in {info.precision}{note}"
        click.echo(f"ready on {server.address}: {info.model.name} {info.model.version} on {runs_on}")
        await server.wait_until_stopped()
    finally:
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)
    return server.telemetry.figures()


@click.command()
@click.option("--server", required=True, metavar="ADDR", help="HOST:PORT or unix:/PATH of a running server.")
@click.option("--source", required=True, help="Folder, quoted glob, image, video file or address, or camera index.")
@click.option("--out", type=_FOLDER, required=True, help="Folder for answers.jsonl and overlays.")
@click.option("--overlays", is_flag=True, help="Write a picture of every frame with what the model saw.")
@click.option("--overlay-class", default="", help="Show the evidence for this class instead of the anomaly map.")
@click.option("--page", is_flag=True, help="With --overlays: the whole lot in one HTML file, OUT/lot.html.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Frames per second at most.")
@click.option("--jsonl", type=_FILE, help="Write the answers here instead of OUT/answers.jsonl.")
@click.option("--in-flight", type=click.IntRange(1), default=4, show_default=True, help="Frames out at once.")
@click.option("--camera", default="", help="Name that the frames go under, for accounts, drift and stations.")
@json_option
@exits_cleanly
def inspect(
    server: str,
    source: str,
    out: Path,
    overlays: bool,
    overlay_class: str,
    page: bool,
    rate: float | None,
    jsonl: Path | None,
    in_flight: int,
    camera: str,
    as_json: bool,
) -> None:
    """Send frames from a folder, video or camera to a server, and write down its answers.

    A frame without a verdict is listed and the others go on; the exit code is then 1. Ctrl-C ends in good order.
    Overlays of one model share one colour scale, whatever the lot, so that any two of them can be compared.

    \b
    Example:
      defectlens inspect --server 127.0.0.1:50051 --source parts/test --out answers --overlays --page
      defectlens inspect --server 127.0.0.1:50051 --source 0 --out answers --rate 5
    """
    from serving.client import InspectionClient
    from serving.inspecting import Inspecting
    from serving.sources import open_source
    from vision.lot_page import LotPage

    if (page or overlay_class) and not overlays:
        raise SettingsError("--page and --overlay-class are about overlays; give --overlays too")
    frames = open_source(source)
    answers = jsonl or out / "answers.jsonl"
    folder = out / "overlays" if overlays else None
    with InspectionClient(server) as client:
        info = client.get_model(timeout_s=10.0)
        say(f"{server} serves {info.model.name} {info.model.version} on {info.provider}")
        for path in (out, answers.parent, *([] if folder is None else [folder])):
            path.mkdir(parents=True, exist_ok=True)
        about = f"{info.model.name} {info.model.version}, one colour scale for every frame of this model"
        lot = LotPage(out / "lot.html", f"Lot {source}", about) if page else None
        with answers.open("w", encoding="utf-8") as stream, lot or nullcontext():
            run = Inspecting(
                stream,
                overlays=folder,
                overlay_class=overlay_class,
                page=lot,
                rate=rate,
                in_flight=in_flight,
                camera=camera,
            )
            with _interrupt_calls(run.stop.set):
                tally = run.run(client, frames)
    figures = {**tally.figures(), "answers": answers, "overlays": folder}
    if page:
        figures["page"] = out / "lot.html"
    if tally.broken is not None:
        say(f"error: {tally.broken}")
    cut_short = run.stop.is_set() and not frames.is_live
    if cut_short:
        say("stopped before the end of the source")
    finish(figures, as_json=as_json)
    if tally.errors or tally.broken is not None or cut_short:
        raise SystemExit(EXIT_FAILURE)


@contextmanager
def _interrupt_calls(action: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C calls ``action``, a second one interrupts as usual."""

    def handle(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        say("stopping; waiting for the answers that are out")
        action()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
