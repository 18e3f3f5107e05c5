"""Signals that end the program are told at once, and wait for what must be whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from dskprep import endings


@pytest.fixture(autouse=True)
def as_python_has_it() -> Iterator[None]:
    """SIGINT is as Python has it; dask_jobqueue, once imported, has it end the process."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_what_is_begun_is_done_before_the_program_ends() -> None:
    done = []

    def work() -> None:
        with endings.held_back():
            press_ctrl_c()
            done.append("all")
        done.append("more")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_who_presses_twice_does_not_wait() -> None:
    done = []

    def work() -> None:
        with endings.held_back():
            press_ctrl_c()
            done.append("some")
            press_ctrl_c()
            done.append("all")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["some"]


def test_as_many_as_are_held_back_wait_and_one_more_does_not() -> None:
    done = []

    def work(n: int) -> None:
        with endings.held_back(2):
            for k in range(n):
                press_ctrl_c()
                done.append(k)

    for n in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            work(n)
    assert done == [0, 1, 0, 1]


def test_one_signal_ends_a_block_that_takes_it_and_a_second_one_goes_on() -> None:
    done: list[str] = []

    def work(n: int) -> None:
        with endings.taken(lambda: done.append(f"told {n}")):
            try:
                press_ctrl_c()
            finally:
                if n == 2:
                    press_ctrl_c()
            done.append("never")
        done.append("on")

    work(1)
    with pytest.raises(KeyboardInterrupt):
        work(2)
    assert done == ["told 1", "on", "told 2"]


def test_two_signals_that_were_held_back_together_are_two() -> None:
    def work() -> None:
        with endings.taken(lambda: None), endings.held_back(2):
            press_ctrl_c()
            press_ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        work()


def test_a_handler_hears_each_signal_once() -> None:
    """Also one that ends the program at the first signal alone."""
    heard = []

    def hear(number: int, _: object) -> None:
        heard.append(number)
        if len(heard) == 1:
            raise KeyboardInterrupt

    def work() -> None:
        with endings.held_back():
            press_ctrl_c()
            press_ctrl_c()

    signal.signal(signal.SIGINT, hear)
    with pytest.raises(KeyboardInterrupt):
        work()
    assert heard == [signal.SIGINT] * 2


def test_an_error_of_the_block_comes_before_the_signal() -> None:
    def fail() -> None:
        with endings.held_back():
            press_ctrl_c()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_is_told_before_it_takes_effect_also_where_it_is_held_back() -> None:
    told: list[str] = []

    def work() -> None:
        with endings.told(lambda: told.append("ending")):
            with endings.held_back():
                press_ctrl_c()
                told.append("whole")
            told.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert told == ["ending", "whole"]


def test_a_signal_that_python_does_not_handle_stays_as_it_is() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with endings.held_back(), endings.told(lambda: None):
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        press_ctrl_c()


def test_another_thread_leaves_signals_alone() -> None:
    seen = []

    def work() -> None:
        with endings.held_back():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
