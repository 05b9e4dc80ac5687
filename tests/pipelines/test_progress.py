from __future__ import annotations

import pytest

from hyperdream_core.pipelines.progress import no_progress, tqdm_progress


def test_a_bar_follows_the_steps_and_ends_where_they_do(capsys: pytest.CaptureFixture[str]) -> None:
    with tqdm_progress("polish", "step") as progress:
        for step in (0, 1, 3, 4):
            progress(step, 4)
    shown = capsys.readouterr()
    assert "polish: 100%" in shown.err and "4/4" in shown.err and shown.out == ""


def test_a_hidden_bar_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with tqdm_progress("polish", hidden=True) as progress:
        progress(2, 2)
    no_progress(1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_bar_is_closed_when_the_job_is_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), tqdm_progress("polish") as progress:
        progress(1, 4)
        raise KeyboardInterrupt
    assert "1/4" in capsys.readouterr().err
