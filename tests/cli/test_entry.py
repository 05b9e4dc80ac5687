from __future__ import annotations

import errno
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hyperdream_core.cli import command_list, entry
from hyperdream_core.cli.commands import inspect
from hyperdream_core.errors import Cancelled, ConfigError

ROOT = Path(__file__).parents[2]
NAMES = (
    "personalize", "prepare", "predict", "polish", "draw", "export", "inspect", "evaluate", "corpus", "train",
    "miniature",
)  # fmt: skip


def test_help_lists_every_command_and_loads_nothing_heavy() -> None:
    code = "import sys; from hyperdream_core.cli import main; main(['--help']); print(sorted(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    listing, modules = ran.stdout.rsplit("\n", 2)[:2]
    assert set(NAMES) == set(command_list.COMMANDS)
    assert all(f"    {name} " in listing or f"    {name}\n" in listing for name in NAMES)
    assert not {"torch", "diffusers", "numpy", "PIL"} & set(modules[2:-2].split("', '"))


def test_the_module_runs_as_the_console_script_does() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "hyperdream_core", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0 and ran.stdout.startswith("hyperdream ")


@pytest.mark.parametrize("name", NAMES)
def test_every_flag_has_help(name: str) -> None:
    parser = entry.build_parser([name])
    chosen = parser._subparsers._group_actions[0].choices[name]  # type: ignore[union-attr, index, call-overload]
    # Of a command with a second word, the flags of each.
    parsers = [chosen]
    if command_list.COMMANDS[name].below:
        parsers = list(chosen._subparsers._group_actions[0].choices.values())
        assert len(parsers) == len(command_list.COMMANDS[name].below)
    for one in parsers:
        assert not [action.option_strings or action.dest for action in one._actions if not action.help]
        assert "(default: )" not in one.format_help()


@pytest.mark.parametrize(
    ("older", "name", "flags"),
    [
        ("finetune", "polish", ["a.png"]),
        ("sample", "draw", ["--prompt", "x"]),
        ("predict", "predict", ["a.png", "--hypernetwork", "b.safetensors"]),
    ],
)
def test_what_commands_were_called_in_the_first_release_is_understood_and_not_shown(
    older: str, name: str, flags: list[str]
) -> None:
    run = entry.build_parser([older]).parse_args([older, *flags]).run
    assert run is command_list.COMMANDS[name].run
    assert (older == name) == (older in entry.build_parser([name]).format_help())


def test_flags_of_the_first_release_are_understood_and_not_shown() -> None:
    from hyperdream_core.cli.flags import config_from_flags
    from hyperdream_core.pipelines.drawing.draw import DrawConfig
    from hyperdream_core.pipelines.polishing.polish_config import PolishConfig

    older = ["--finetune-steps", "3", "--finetune-batch", "2", "--sample-steps", "5", "--sample-batch", "4"]
    words = ["personalize", "a.png", "--prompt", "x", *older, "--hypernetwork", "none"]
    parser = entry.build_parser(words)
    arguments = parser.parse_args(words)
    polish, draw = config_from_flags(PolishConfig, arguments), config_from_flags(DrawConfig, arguments)
    assert (polish.steps, polish.batch, draw.steps, draw.batch, arguments.predictor) == (3, 2, 5, 4, "none")
    help_text = parser._subparsers._group_actions[0].choices["personalize"].format_help()  # type: ignore[union-attr, index, call-overload]
    assert "--polish-steps" in help_text and "--draw-batch" in help_text and "--predictor" in help_text
    assert not any(flag in help_text for flag in ("finetune", "--sample-", "--hypernetwork"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no command given"),
        (("frobnicate",), "invalid choice: 'frobnicate'"),
        (("predict",), "required: PICTURE"),
        (("predict", "a.png", "--refine-steps", "two"), "invalid whole number value: 'two'"),
        (("predict", "a.png", "--refine-steps", "9" * 30), "invalid whole number value"),
        (("draw", "--prompt", "x", "--strength", "nan"), "invalid number value: 'nan'"),
        (("miniature",), "required: build|render"),
    ],
)
def test_a_wrong_command_line_is_said_and_gives_2(run: Callable, words: tuple[str, ...], said: str) -> None:
    ran = run(*words)
    assert ran.code == 2 and said in ran.error and ran.out == ""


@pytest.mark.parametrize("place", ["before", "after"])
def test_errors_are_one_json_object_where_that_was_asked(run: Callable, place: str) -> None:
    words = ["--json", "inspect"] if place == "before" else ["inspect", "--json"]
    ran = run(*words)
    assert (ran.json["error"], ran.json["exit_code"], ran.code) == ("usage", 2, 2)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("rank must be 1 or more, got 0"), 1, "hyperdream: rank must be 1 or more, got 0"),
        (OSError(errno.ENOSPC, "No space left on device", "a.png"), 1, "a.png: cannot be read or written (No space"),
        (MemoryError(), 1, "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), 1, "not enough"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C; nothing had been written yet"),
        (Cancelled("stopped after 3 of 8 subjects"), 130, "stopped after 3 of 8 subjects; nothing"),
    ],
)
def test_what_a_user_can_cause_is_one_sentence(
    run: Callable, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setitem(command_list.COMMANDS, "inspect", command_list.Command("fail", inspect.add_flags, fail))  # type: ignore[arg-type]
    ran = run("--json", "inspect", "x")
    assert (ran.code, ran.json["exit_code"]) == (code, code)
    assert said in ran.error and len(ran.error.splitlines()) == 1 and json.loads(ran.out)["message"] in ran.error


def test_a_mistake_of_ours_keeps_its_traceback(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setitem(command_list.COMMANDS, "inspect", command_list.Command("fail", inspect.add_flags, fail))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run("inspect", "x")


def answering(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Let `inspect` say this."""

    def run(*_: object) -> entry.Outcome:
        return entry.Outcome({"text": text}, text)

    monkeypatch.setitem(command_list.COMMANDS, "inspect", command_list.Command("say", inspect.add_flags, run))


@pytest.mark.parametrize("words", [("inspect", "x"), ("--json", "inspect", "x")])
def test_what_a_terminal_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    answering(monkeypatch, "Zoë \udce9 \ud800")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert entry.main(words) == 0
    shown = stream.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert (
        shown == "Zo\\xeb \\udce9 \\ud800\n" if len(words) == 2 else json.loads(shown) == {"text": "Zoë \udce9 \ud800"}
    )


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_output_that_cannot_be_written_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    answering(monkeypatch, "x")
    monkeypatch.setattr(sys, "stdout", Gone())
    assert entry.main(["inspect", "x"]) == 1
    said = capsys.readouterr().err
    assert said == "" if isinstance(error, BrokenPipeError) else "cannot be printed (No space left" in said


def test_a_second_interrupt_while_the_first_is_reported_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(command_list.COMMANDS, "inspect", command_list.Command("stop", inspect.add_flags, stop))  # type: ignore[arg-type]
    monkeypatch.setattr(entry, "_fail", stop)
    assert entry.main(["inspect", "x"]) == 130
    assert capsys.readouterr().err == ""


def test_a_message_is_one_line_without_a_terminals_commands(run: Callable) -> None:
    ran = run("inspect", "a\x1b[2Jb\nc" + "x" * 9000)
    (line,) = ran.error.splitlines()
    assert "\x1b" not in line and len(line) < 5000


def test_an_interrupt_within_an_objects_end_is_heard_all_the_same(
    run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ending:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    def work(*_: object) -> entry.Outcome:
        Ending()
        for _ in range(1000):
            time.sleep(0.01)
        return entry.Outcome({}, "went on")

    monkeypatch.setitem(command_list.COMMANDS, "inspect", command_list.Command("work", inspect.add_flags, work))  # type: ignore[arg-type]
    # Whoever starts the tests in the background may have switched Ctrl-C off.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        ran = run("inspect", "x")
    finally:
        signal.signal(signal.SIGINT, before)
    assert ran.code == 130 and ran.error.splitlines() == ["hyperdream: stopped by Ctrl-C; nothing had been written yet"]
