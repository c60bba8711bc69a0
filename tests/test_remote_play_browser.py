"""The server's page in a real headless Chromium, with keys, sentences, futures and fingers."""

import os
import runpy
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from worldmodel.evaluate.scenario import load_scenario

HERE = Path(__file__).parent
toy = runpy.run_path(str(HERE / "serve_toy.py"))
chromium = runpy.run_path(str(HERE / "browser.py"))
pytestmark = pytest.mark.skipif(
    not chromium["EXECUTABLE"], reason="not installed: chromium (apt-get install chromium)"
)
TOKEN = "open sesame, please"
CONTRAST = """(() => {
  const rgb = (name) => {
    const probe = document.createElement('i');
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const found = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(Number);
    probe.remove();
    return found;
  };
  const light = (c) => c.map((v) => v / 255).map(
    (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
  ).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ratio = (a, b) => {
    const [x, y] = [light(rgb(a)), light(rgb(b))].sort((m, n) => n - m);
    return (x + 0.05) / (y + 0.05);
  };
  const words = ['--text', '--muted', '--faint', '--amber', '--teal', '--green', '--red'];
  const grounds = ['--back', '--surface'];
  return {back: rgb('--back')[0],
          contrasts: words.flatMap((word) => grounds.map((ground) => ratio(word, ground)))};
})()"""
"""Contrast of the colours of words on those of grounds."""


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
    browser.js("window.away = () => document.body.classList.contains('away')")
    yield browser
    assert not browser.errors, browser.errors
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
    ) == ("W,A,D")
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


def test_a_lost_connection_is_shown_and_comes_back(page, server):
    number, session = page.until("state.now.number > 3 && [state.now.number, store.session]")
    page.js("socket.close()")
    page.until("$('cardtitle').textContent === 'Connection lost' && away()")
    assert page.text("cardtext").startswith("Trying again in ")
    page.until(f"open && !away() && state.now.number > {number}")
    assert page.js("store.session") == session
    page.open("about:blank")
    page.open(f"http://{server.address}/")
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
    browser.until("$('ask').open && $('askwhy').textContent.startsWith('That is not')")
    browser.js("$('token').focus()")
    browser.type(TOKEN)
    browser.press("Enter")
    browser.until("state && state.steps_done > 2")
    browser.js("send({bye: true}), store.clear()")


@pytest.mark.parametrize(("width", "height"), [(390, 844), (844, 390), (320, 568)])
def test_fingers_hold_keys_on_a_small_screen(page, width, height):
    page.size(width, height, touch=True)
    assert page.js(f"document.documentElement.scrollWidth <= {width}")  # nothing sticks out
    if height > 600:  # the picture and all keys are there at once
        assert page.js(
            "[$('frame'), $('sentence'), ...$('keys').children, ...$('commands').children]"
            ".filter((e) => e.offsetWidth).every((e) => e.getBoundingClientRect().bottom <= 844)"
        )
    assert page.js(  # W above S, A left of it, D right
        "(() => { const at = (key) => document.querySelector(`[data-key=${key}]`)"
        ".getBoundingClientRect(); return at('w').bottom <= at('s').top && "
        "at('a').right <= at('s').left && at('d').left >= at('s').right; })()"
    )
    page.touch("[data-key=d]")
    page.until("state.now.text === 'action: d'")
    page.lift()
    page.until("state.now.text === 'action: none'")


def test_the_map_leads_anywhere(page):
    page.press("f")
    page.until("state.futures.length === 3 && state.futures[0].steps > 1")
    page.press("2")
    page.until("!state.futures.length && state.now.keys.length === 0")
    page.press("m")
    page.until("state.map.length > 3 && state.status === 'paused'")
    page.until("state.map.every((stop) => pictures.has(stop.node))")
    assert page.js("document.querySelectorAll('.stop').length === state.map.length")
    assert page.js("document.querySelector('.stop.here.chosen span').textContent") == "here"
    here = page.js("chosen")
    page.press("ArrowUp")
    page.until(f"chosen !== {here}")
    page.press("n")
    page.type("red door")
    page.press("Enter")
    page.until("state.map.some((stop) => stop.name === 'red door' && stop.node === chosen)")
    assert page.js("$('map').open")
    node = page.js("chosen")
    page.js("$('chart').focus()")
    page.press("Enter")
    page.until(f"!$('map').open && state.now.node === {node} && state.map.length === 0")
    assert page.js("state.status") == "paused"  # it is where one wanted to go
    assert page.js("document.activeElement !== $('sentence')")  # Enter meant the map alone
    page.press("m")
    page.until("state.map.length > 3")
    page.press("m")
    page.until("!$('map').open && state.map.length === 0")


def test_trust_and_what_a_key_took_are_shown(page):
    page.down("w")
    page.until("state.trust && state.trust.reading && spent.length")
    page.up("w")
    page.until("$('stages').hidden === false && $('trustword').textContent !== ''")
    assert page.text("score").endswith(" spreads")
    assert page.js("$('meter').querySelectorAll('.lit').length") == 1
    assert page.text("stagetext").startswith("way ")
    assert page.js("$('bar').children.length") == 4


def test_a_path_is_kept_as_a_scenario(page, tmp_path):
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.down("d")
    page.until("state.now.text === 'action: d'")
    page.up("d")
    page.press("k")
    page.until("$('notice').textContent.startsWith('Kept the ')")
    name = page.text("notice").rsplit(" ", 1)[1]
    toy["until"](lambda: (tmp_path / name).exists())
    scenario = load_scenario(tmp_path / name)
    assert any(event.kind == "hold" and event.keys == ("d",) for event in scenario.events)


def test_who_plays_elsewhere_and_who_waits_for_a_place_is_told_so(page, server):
    other = toy["Viewer"](server.address, TOKEN, page.js("store.session"))
    page.until("away() && $('cardtitle').textContent === 'Playing elsewhere'")
    page.js("$('cardbutton').click()")
    page.until("open && !away()")
    assert other.closed()[0] == 4409

    page.js("send({bye: true}), store.removeItem('session'), socket.onclose = null")
    crowd = [toy["Viewer"](server.address, TOKEN) for _ in range(4)]
    for one in crowd:
        one.sees(lambda now: now.now)
    page.js("connect()")
    page.until("away() && $('cardtitle').textContent === 'All sessions of this server are taken'")
    assert not page.js("$('card').querySelector('button').hidden")
    for one in crowd:
        one.leave()
    page.until("open && !away()")  # by itself


def test_a_model_that_stalls_or_is_slow_is_told(page, server):
    page.until("state.now.number > 3 && state.fps > 0")
    page.js("hello.fps = 60")  # more than this server makes
    page.until("$('badge').textContent.startsWith('SLOW MODEL: ')")
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        page.until("$('badge').textContent.startsWith('WAITING FOR THE MODEL, ')")
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    page.until("!$('badge').textContent.startsWith('WAITING')")


def test_a_page_that_nobody_looks_at_leaves_the_model_to_others(page):
    hide = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
    page.js(hide % "true" + "document.onvisibilitychange()")
    page.until("state.status === 'paused'")
    page.js(hide % "false" + "document.onvisibilitychange()")
    page.until("state.status === 'playing'")
    # Timers are rare in the background: silence counts from a ping that was not answered.
    page.js(
        "asked = 0; performance.now = ((now) => () => now.call(performance) + 1e5)(performance.now)"
    )
    page.until("rtt !== null && rtt < 5e4 && open")
    number = page.js("state.now.number")
    page.until(f"state.now.number > {number}")
    assert page.js("tries") == 0


def test_light_and_dark(page):
    shades = []
    for scheme in ("dark", "light"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.call("Emulation.setEmulatedMedia", features=[feature])
        shades.append(page.js(CONTRAST))
    page.call("Emulation.setEmulatedMedia", features=[])
    assert shades[0]["back"] < 40
    assert shades[1]["back"] > 200
    for shade in shades:
        assert min(shade["contrasts"]) > 4.5, shade  # as WCAG asks for text


def test_help_is_a_key_away_and_every_command_is_in_it(page):
    page.press("h")
    assert page.js("$('help').open")
    page.press("w")  # does not drive meanwhile
    assert page.js("held.size") == 0
    assert page.js("document.querySelectorAll('#helplist dt').length === COMMANDS.length")
    page.press("Escape")
    page.until("!$('help').open")
