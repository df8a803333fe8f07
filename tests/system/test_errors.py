"""How a script ends."""

import pytest

from fast_cifar.system.errors import UserError, run_script


def raising(error):
    def script():
        raise error

    return script


def test_success_is_0_and_silent(capsys):
    assert run_script(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


def test_what_the_user_can_mend_is_2_and_one_line(capsys):
    assert run_script(raising(UserError("a.png is empty"))) == 2
    assert capsys.readouterr() == ("", "error: a.png is empty\n")


def test_an_interruption_is_130_and_says_how_to_go_on(capsys):
    assert run_script(raising(KeyboardInterrupt("interrupted; go on"))) == 130
    assert capsys.readouterr().err == "interrupted; go on\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_script(raising(ZeroDivisionError()))


def test_an_error_is_one_line_even_where_a_path_has_two(capsys):
    def script():
        raise UserError("a\nb is missing")

    assert run_script(script) == 2
    assert capsys.readouterr().err == "error: a b is missing\n"
