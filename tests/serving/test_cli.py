"""The commands as a user types them: a server in its own process, `inspect` and `info` against it."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import pytest
from click.testing import CliRunner, Result

from defectlens import main
from serving import AsyncInspectionClient, FrameRequest, InspectionClient
from serving.messages import EncodedImage
from tests.fakes import make_bundle, part
from tests.serving.conftest import ONCE, png
from vision.errors import ShuttingDownError, UnreachableError


@contextmanager
def serving(bundle: Path, log: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``defectlens serve`` in another process: its address, once ready."""
    ready = log.with_suffix(".ready")
    command = [sys.executable, "-W", "error", "-m", "defectlens", "serve", "--bundle", str(bundle), "--threads", "1"]
    # Click takes the last --address.
    command += ["--address", "127.0.0.1:0", "--ready-file", str(ready), *options]
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stream, text=True)
    try:
        until = time.monotonic() + 20
        while not ready.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.02)
        yield ready.read_text().strip(), process
    finally:
        if process.poll() is None:
            process.terminate()
        output, _ = process.communicate(timeout=20)
    assert "ready on " in output
    assert not ready.exists()
    if process.returncode == 0:
        assert_accounts_add_up(log)


def assert_accounts_add_up(log: Path) -> None:
    """By the last line of a server's log."""
    assert "accounting_broken" not in log.read_text()
    last = log.read_text().splitlines()[-1]
    if last.startswith("{"):
        counts = json.loads(last)
    else:
        words = last.partition("event=stopped ")[2].split()
        counts = {name: int(count) for name, _, count in (word.partition("=") for word in words)}
    assert counts["received"] == counts["judged"] + counts["not_judged"] + counts["errors"]
    assert counts["in_flight"] == 0


@pytest.fixture(scope="module")
def address(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("serve") / "log"
    with serving(bundle, log) as (address, process):
        yield address
        process.terminate()
        assert process.wait(20) == 0, log.read_text()
    assert "in_flight=0" in log.read_text().splitlines()[-1]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    folder = tmp_path / "parts"
    (folder / "sub").mkdir(parents=True)
    for index, spot in enumerate((128, 255, 0)):
        (folder / "sub" / f"part{index}.png").write_bytes(png(part(spot=spot)))
    (folder / "sub" / "part0.bmp").write_bytes(cv2.imencode(".bmp", part())[1].tobytes())
    return folder


def test_a_folder_with_one_bad_file(address: str, parts: Path, tmp_path: Path) -> None:
    (parts / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out"
    result = run("inspect", "--server", address, "--source", parts, "--out", out, "--overlays", "--json")
    assert result.exit_code == 1
    figures = json.loads(result.stdout.splitlines()[-1])
    assert (figures["frames"], figures["verdicts"], figures["errors"]) == (5, 4, 1)
    assert figures["by_verdict"] == {"PASS": 2, "REJECT": 2}
    assert figures["provider"] == "CPUExecutionProvider"
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]
    assert figures["frames_per_second"] > 0
    assert Path(figures["overlays"]) == out / "overlays"
    assert "broken.png" in result.stderr
    assert "no image" in result.stderr
    answers = {line["path"]: line for line in lines(out / "answers.jsonl")}
    assert len(answers) == 5
    broken = answers[str(parts / "broken.png")]
    assert (broken["verdict"], broken["error"]["type"]) == ("NO_VERDICT", "NotAnImageError")
    bright = answers[str(parts / "sub/part1.png")]
    assert bright["verdict"] == "REJECT"
    assert bright["regions"][0]["label"] == "bright"
    assert bright["class_scores"].keys() == {"good", "bright", "dark"}
    assert bright["timings"]["total_ms"] > 0
    assert bright["model"]["name"] == "fake"
    overlays = sorted(path.relative_to(out / "overlays").as_posix() for path in (out / "overlays").rglob("*.jpg"))
    assert len(overlays) == 4  # part0.bmp and part0.png do not overwrite each other
    assert cv2.imread(bright["overlay"]) is not None


def test_a_lot_on_one_page(address: str, parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["inspect", "--server", address, "--source", parts, "--out", out]
    result = run(*arguments, "--overlays", "--page", "--overlay-class", "bright", "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout.splitlines()[-1])
    page = Path(figures["page"]).read_text()
    assert page.count("<figure ") == 4
    assert 'data-verdict="REJECT"' in page
    assert "sub/part1.png" in page
    assert "http" not in page  # self-contained
    overlay = next(line["overlay"] for line in lines(out / "answers.jsonl") if "part1.png" in line["path"])
    assert base64.b64encode(Path(overlay).read_bytes()).decode() in page
    refused = run(*arguments, "--page")
    assert refused.exit_code == 2
    assert "give --overlays too" in refused.stderr


def test_all_good_ends_with_0_and_lines_on_stderr(address: str, parts: Path, tmp_path: Path) -> None:
    jsonl = tmp_path / "elsewhere" / "answers.jsonl"
    pattern = f"{parts}/**/*.png"
    result = run("inspect", "--server", address, "--source", pattern, "--out", tmp_path / "out", "--jsonl", jsonl)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "frames_per_second" in result.stderr
    assert len(lines(jsonl)) == 3
    assert not (tmp_path / "out" / "overlays").exists()


def test_a_video_at_a_given_rate(address: str, tmp_path: Path) -> None:
    path = tmp_path / "line.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (96, 64))
    for _ in range(6):
        writer.write(part())
    writer.release()
    start = time.monotonic()
    result = run("inspect", "--server", address, "--source", path, "--out", tmp_path / "out", "--rate", "20", "--json")
    assert result.exit_code == 0, result.output
    assert time.monotonic() - start >= 5 / 20
    assert json.loads(result.stdout)["frames"] == 6
    assert {line["path"] for line in lines(tmp_path / "out/answers.jsonl")} == {f"{path}#{i}" for i in range(6)}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--server", "ADDRESS", "--source", "nowhere"], 2, "nowhere is no folder"),
        (["--server", "127.0.0.1:1", "--source", "PARTS"], 1, "no inspection server answers at 127.0.0.1:1"),
        (["--server", "ADDRESS", "--source", "PARTS", "--rate", "0"], 2, "rate"),
        (["--source", "PARTS"], 2, "--server"),
    ],
)
def test_wrong_use_is_said_in_words(
    address: str, parts: Path, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    known = {"ADDRESS": address, "PARTS": str(parts)}
    result = run("inspect", *(known.get(item, item) for item in arguments), "--out", str(tmp_path / "out"))
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.output


def test_info_for_people_and_for_programs(bundle: Path, tmp_path: Path) -> None:
    result = run("info", "--bundle", bundle)
    assert result.exit_code == 0
    assert "classes: good, bright, dark" in result.stdout
    facts = json.loads(run("info", "--bundle", bundle, "--json").stdout)
    assert facts["operating_point"]["image_threshold"] == 0.3
    assert facts["metrics"] == {"image_auroc": 1.0}
    assert "promise: 99 made-up good parts" in result.stdout
    plain = run("info", "--bundle", make_bundle(tmp_path / "na", anomaly=False))
    assert "anomaly_score: False" in plain.stdout
    refused = run("info", "--bundle", tmp_path)
    assert refused.exit_code == 2
    assert "is no bundle" in refused.stderr


@pytest.mark.slow
def test_the_commands_over_a_unix_socket(bundle: Path, parts: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with serving(bundle, tmp_path / "log", "--address", f"unix:{path}", "--fast-decode") as (address, process):
        assert address == f"unix:{path}"
        result = run("inspect", "--server", address, "--source", parts, "--out", tmp_path / "out", "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["by_verdict"] == {"PASS": 2, "REJECT": 2}
        facts = json.loads(run("info", "--server", address, "--json").stdout)
        assert facts["fast_decode"] is True
        assert facts["model"]["name"] == "fake"
        assert facts["metrics"] == {"image_auroc": 1.0}
        assert facts["limits"]["max_shared_bytes"] > 0
        process.terminate()
        assert process.wait(20) == 0
    assert not path.exists()
    assert "unencrypted" not in (tmp_path / "log").read_text()


def test_info_is_of_a_bundle_or_of_a_server(bundle: Path) -> None:
    for arguments in ([], ["--bundle", bundle, "--server", "127.0.0.1:1"]):
        result = run("info", *arguments)
        assert result.exit_code == 2
        assert "either --bundle" in result.stderr


@pytest.mark.slow
def test_a_killed_server_is_followed_by_another_on_its_socket(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with serving(bundle, tmp_path / "log", "--address", f"unix:{path}") as (_, process):
        process.kill()
        process.wait()
        (tmp_path / "log.ready").unlink()
    assert path.is_socket()
    with (
        serving(bundle, tmp_path / "log", "--address", f"unix:{path}") as (address, _),
        InspectionClient(address) as client,
    ):
        assert client.is_ready()


@pytest.mark.parametrize("command", ["serve", "inspect", "info"])
def test_help_explains_itself_with_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"defectlens {command} --" in result.stdout


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--bundle", "DAMAGED"], 1, "differs by 1"),
        (["--bundle", "nowhere"], 2, "is no bundle"),
        (["--bundle", "GOOD", "--address", "elsewhere"], 2, "HOST:PORT"),
        (["--bundle", "GOOD", "--address", "192.0.2.1:0"], 2, "unencrypted"),
        (["--bundle", "GOOD", "--provider", "cuda", "--strict-provider"], 1, "--strict-provider"),
    ],
)
def test_a_server_that_must_not_start_says_why(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], code: int, words: str
) -> None:
    monkeypatch.setattr("vision.engine._cuda_device_present", lambda: False)
    known = {"GOOD": str(bundle), "DAMAGED": str(make_bundle(tmp_path / "damaged", damage_golden=True))}
    result = run("serve", *(known.get(item, item) for item in options))
    assert result.exit_code == code, result.output
    assert words in result.stderr
    assert "ready" not in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_loses_no_accepted_frame(slow_bundle: Path, tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "log"
    replies: list[Any] = []
    refused: list[Any] = []
    answers: list[Any] = []

    async def load(address: str, process: subprocess.Popen[str]) -> None:
        async with AsyncInspectionClient(address, retry=ONCE) as client:

            async def camera() -> None:
                while True:
                    try:
                        replies.append(await client.inspect(part()))
                    except (ShuttingDownError, UnreachableError) as error:
                        refused.append(error)
                        return

            async def stream() -> None:
                requests = (FrameRequest(EncodedImage(png(part()))) for _ in range(10_000))
                try:
                    async for answer in client.inspect_stream(requests, in_flight=4):
                        answers.append(answer)  # noqa: PERF401
                except (ShuttingDownError, UnreachableError) as error:
                    refused.append(error)

            tasks = [asyncio.create_task(camera()) for _ in range(6)] + [asyncio.create_task(stream())]
            await asyncio.sleep(0.5)
            process.send_signal(number)
            await asyncio.wait_for(asyncio.gather(*tasks), 15)

    with serving(slow_bundle, log, "--max-batch", "2", "--verbose") as (address, process):
        asyncio.run(load(address, process))
        assert process.wait(15) == 0
    done = [answer for answer in answers if answer.error is None]
    lost = [answer for answer in answers if answer.error is not None]
    last = log.read_text().splitlines()[-1]
    counts = dict(item.split("=") for item in last.partition("event=stopped ")[2].split())
    assert int(counts["judged"]) == len(replies) + len(done) > 5
    assert counts["in_flight"] == "0"
    assert "Cancelled" not in counts
    assert len(refused) == 7
    assert len(lost) <= 4
    assert all(isinstance(answer.error, ShuttingDownError | UnreachableError) for answer in lost)


@pytest.mark.slow
def test_ctrl_c_ends_inspect_in_good_order(address: str, parts: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "defectlens", "inspect", "--server", address, "--source", str(parts)]
    command += ["--out", str(tmp_path / "out"), "--rate", "1", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    answers = tmp_path / "out/answers.jsonl"
    while not (answers.exists() and answers.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=10)
    assert process.returncode == 1
    figures = json.loads(output)
    assert 1 <= figures["frames"] < 4
    assert figures["errors"] == 0
    assert "stopped before the end" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_server_that_dies_leaves_no_frame_unexplained(bundle: Path, parts: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path / "log") as (address, process):
        with InspectionClient(address) as client:
            client.wait_until_ready(5)
        for index in range(40):
            (parts / f"more{index}.png").write_bytes(png(part()))
        killer = threading.Timer(0.4, process.kill)
        killer.start()
        result = run(
            "inspect", "--server", address, "--source", parts, "--out", tmp_path / "out", "--rate", "50", "--json"
        )
        killer.join()
        (tmp_path / "log.ready").unlink()  # a killed server cannot tidy up
    assert result.exit_code == 1
    figures = json.loads(result.stdout)
    assert figures["frames"] == figures["verdicts"] + figures["errors"] == len(lines(tmp_path / "out/answers.jsonl"))
    assert "error: no inspection server answers" in result.stderr


@pytest.mark.slow
def test_serve_ends_with_one_json_line_of_its_counts(bundle: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    command = [
        sys.executable,
        "-m",
        "defectlens",
        "serve",
        "--bundle",
        str(bundle),
        "--address",
        "127.0.0.1:0",
        "--json",
    ]
    process = subprocess.Popen([*command, "--ready-file", str(ready)], stdout=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 20
        while not ready.exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        with InspectionClient(ready.read_text().strip()) as client:
            client.inspect(png(part()))
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=20)
    figures = json.loads(output.splitlines()[-1])
    assert (figures["received"], figures["judged"], figures["in_flight"]) == (1, 1, 0)
