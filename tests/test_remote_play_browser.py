"""The server's page in a real headless Chromium, with keys, sentences, futures and fingers."""

import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
toy = runpy.run_path(str(HERE / "serve_toy.py"))
chromium = runpy.run_path(str(HERE / "browser.py"))
pytestmark = pytest.mark.skipif(
    not chromium["EXECUTABLE"], reason="not installed: chromium (apt-get install chromium)"
)
TOKEN = "open sesame, please"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator:
    folder = tmp_path_factory.mktemp("serve")
    settings = (f"checkpoint={toy['save_tiny'](folder)}", "port=0", "fps=10", f"token='{TOKEN}'")
    running = toy["Server"](folder, *settings)
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator:
    with chromium["driven"](tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def page(server, browser) -> Iterator:
    """The page as somebody opens it who has the server's link, in a session of its own."""
    browser.size(1100, 700)
    browser.open("about:blank")
    browser.open(f"http://{server.address}/#{TOKEN}")
    browser.until("state && state.steps_done > 2")
    yield browser
    assert browser.js("window.errors = window.errors || 0") == 0
    browser.js("send({bye: true}), store.clear()")


def test_keys_and_sentences_drive(page):
    assert page.js("location.href").endswith("/")  # the token is out of sight
    assert page.text("name") == "tiny"
    page.down("w")
    page.until("state.now.text === 'action: w'")
    page.down("ArrowLeft")
    page.until("state.now.text === 'action: w+a'")
    assert page.text("text") == "action: w+a"
    assert (
        page.js("[...document.querySelectorAll('.held')].map((key) => key.dataset.key).join()")
        == "w,a"
    )
    page.up("w")
    page.up("ArrowLeft")
    page.until("state.now.text === 'action: none'")

    page.press("Enter")
    for key in "turn was":  # full of keys that drive
        page.press(key)
    page.press("Enter")
    page.until("state.now.text === 'instruction: turn was'")
    assert "turn was" in page.js("document.getElementById('sentence').placeholder")
    page.press("Backspace")
    page.until("state.instruction === '' && state.now.text === 'action: none'")
    page.press("/")
    page.type("what is ahead?")
    page.press("Enter")
    page.until("state.answer")
    assert page.text("question") == "what is ahead?"
    for figure in ("fps", "latency", "rtt"):
        page.until(f"Number(document.getElementById('{figure}').textContent) >= 0")


def test_time_stands_still_and_goes_back(page):
    page.press(" ")
    page.until("state.status === 'paused'")
    assert page.text("badge") == "PAUSED"
    number = page.js("state.now.number")
    page.press(".")
    page.until(f"state.now.number === {number + 1}")
    page.press(",", ",")
    page.until(f"state.now.number === {number - 1}")
    page.js("document.querySelector('#past button').click()")  # the oldest picture
    page.until("state.now.number === 0")
    page.press("n")
    page.until("state.start === 1 && state.steps_done")
    assert page.text("about") == "imagined world, start 2 of 3"


def test_futures_stand_side_by_side_and_one_is_taken(page):
    page.press("f")
    page.until("state.futures.length === 3 && state.futures[0].steps > 1")
    assert page.js(
        "[...document.querySelectorAll('.future b')].map((e) => e.textContent).join()"
    ) == ("hold W,hold A,hold D")
    assert page.text("kind") == "FORK"
    page.press("s")
    page.until("state.futures.length === 4")
    page.press("Enter")
    page.type("turn right")
    page.press("Enter")
    page.until("state.futures.length === 5 && state.futures[4].say === 'turn right'")
    # every picture is there, and within the stage
    assert page.js(
        "(() => { const r = (e) => e.getBoundingClientRect(), stage = r($('stage')); return "
        "[...document.querySelectorAll('.future')].every((e) => r(e).width > 40 && "
        "r(e).bottom <= stage.bottom + 1 && r(e).right <= stage.right + 1); })()"
    )
    page.press("w")  # drops one
    page.until("state.futures.length === 4")
    page.press("4")
    page.until("state.futures.length === 0 && state.instruction === 'turn right'")
    page.press("f")
    page.until("state.futures.length === 4")
    page.press("Escape")
    page.until("state.futures.length === 0")
    page.press("f")
    page.until("state.futures.length === 4")
    page.js("document.querySelectorAll('.future')[1].click()")
    page.until("state.futures.length === 0 && state.now.text === 'action: none'")


def test_a_lost_connection_is_shown_and_comes_back(page):
    number, session = page.until("state.now.number > 3 && [state.now.number, store.session]")
    page.js("socket.close()")
    page.until("$('badge').textContent.startsWith('NO CONNECTION')")
    page.until(f"open && state.now.number > {number}")
    assert page.js("store.session") == session
    page.open("about:blank")
    page.call("Page.reload")
    page.js("history.back()")
    page.until("typeof state === 'object' && state && state.steps_done > 2")
    assert page.js("store.session") == session  # also after the page was loaded anew


def test_without_a_token_it_is_asked_for(server, browser):
    browser.open("about:blank")
    browser.open(f"http://{server.address}/")
    browser.js("store.clear()")
    browser.call("Page.reload")
    browser.until(
        "document.readyState === 'complete' && typeof open === 'boolean' && $('ask').open"
    )
    browser.type("not the right one")
    browser.press("Enter")
    browser.until("$('ask').open && $('askwhy').textContent === 'That was not it.'")
    browser.js("$('token').focus()")
    browser.type(TOKEN)
    browser.press("Enter")
    browser.until("state && state.steps_done > 2")
    browser.js("send({bye: true}), store.clear()")


def test_fingers_hold_keys_on_a_small_screen(page):
    page.size(390, 844, touch=True)
    assert page.js("document.documentElement.scrollWidth <= 390")  # nothing sticks out
    page.touch("[data-key=d]")
    page.until("state.now.text === 'action: d'")
    page.lift()
    page.until("state.now.text === 'action: none'")


def test_help_is_a_key_away_and_every_command_is_in_it(page):
    page.press("h")
    assert page.js("$('help').open")
    page.press("w")  # does not drive meanwhile
    assert page.js("held.size") == 0
    assert page.js("document.querySelectorAll('#helplist dt').length === COMMANDS.length")
    page.press("Escape")
    page.until("!$('help').open")
