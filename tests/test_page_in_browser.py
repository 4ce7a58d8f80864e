"""The page in Chromium, and in Firefox where it is installed: what is drawn, what a reader can do, what it needs."""

from __future__ import annotations

import csv
import itertools
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPConnection
from importlib.resources import files
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from firefox import firefox
from pages import MODULE, NASTY, make_study, results_of, save, save_results, with_spectra

from backlight.errors import UserError
from backlight.report import write_report
from backlight.report.serving import serving

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no chromium and no google-chrome is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def address(made: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the page of a study with claims that compare."""
    folder = with_spectra(Path(shutil.copytree(made, tmp_path_factory.mktemp("page") / "study")))
    return write_report(folder).as_uri()


#: Everything is unpacked, and every chart that came into sight is drawn, in the plane or in space.
DRAWN = (
    "'unpacked' in document.documentElement.dataset && "
    "[...document.querySelectorAll('[data-chart]')]"
    ".every(c => !c.clientWidth || c.querySelector('.cartesianlayer, .gl-container') || c.matches('.empty'))"
)


def scroll_through(tab: Any) -> None:
    """Bring every part of the page into sight."""
    y = 0
    while y < tab.evaluate("document.documentElement.scrollHeight"):  # it grows as charts are drawn
        tab.evaluate(f"scrollTo({{top: {y}, behavior: 'instant'}})")
        tab.wait_for_timeout(30)
        y += 600


def visit(browser: Any, address: str, **how: Any) -> tuple[Any, list[str]]:
    """The page in a new tab, and everything that it complains about or requests from the network."""
    tab = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **how})
    complaints: list[str] = []
    own = (address.split("#", maxsplit=1)[0], "blob:", "data:")
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: complaints.append(request.url) if not request.url.startswith(own) else None)
    tab.goto(address)
    until(tab, "'unpacked' in document.documentElement.dataset")
    return tab, complaints


@pytest.fixture
def opened(browser: Any, address: str) -> Iterator[Any]:
    """The page at 1280 pixels, with everything drawn."""
    tab, complaints = visit(browser, address)
    scroll_through(tab)
    until(tab, DRAWN)
    yield tab
    assert complaints == []
    tab.close()


def until(tab: Any, condition: str) -> None:
    """Return when a condition holds in the page.  Playwright's own waiting evaluates a string: forbidden."""
    from playwright.sync_api import Error

    for _ in range(200):
        try:
            if tab.evaluate(condition):
                return
        except Error as error:  # the page is loading itself again
            if "context was destroyed" not in str(error):
                raise
        tab.wait_for_timeout(50)
    raise AssertionError(f"never came true: {condition}")


def texts(tab: Any) -> list[str]:
    """Every hover text of every chart in sight, and every panel's name."""
    told = tab.evaluate("""
        [...document.querySelectorAll('.js-plotly-plot')].filter(chart => chart.clientWidth && chart.data).map(chart =>
            chart.data.map(trace => trace.text ?? []).concat(chart.layout.annotations.map(note => note.text)))
    """)
    return list(itertools.chain.from_iterable(text if isinstance(text, list) else [text] for chart in told for text in chart))


@pytest.mark.browser
def test_charts_are_drawn_and_name_the_unit(opened: Any) -> None:
    for name, marks in (("fourier-0-0", 12), ("variance-0-0", 12), ("lesion-0-0", 10), ("calibration-0-0", 20)):
        assert opened.locator(f"[data-chart={name}] .points path.point").count() >= marks, name
    assert opened.locator("[data-chart=fourier-1-0] path.js-line").count() == 12
    assert opened.locator("[data-chart=fourier-1-1]").is_hidden()  # behind its tab
    opened.get_by_role("tab", name="Transfer function").click()
    until(opened, "document.querySelector('[data-chart=fourier-1-1] path.js-line')")
    assert opened.locator("[data-chart=fourier-1-1] path.js-line").count() == 10  # the stem has no transfer function

    mark = opened.locator("[data-chart=fourier-0-0] .scatterlayer .trace:last-child .points path.point").nth(3)
    mark.evaluate("mark => mark.scrollIntoView({ block: 'center', behavior: 'instant' })")
    opened.wait_for_timeout(200)
    box = mark.bounding_box()
    opened.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = opened.locator("[data-chart=fourier-0-0] .hoverlayer .hovertext")
    label.wait_for()
    told = label.text_content()
    assert "unit 2 · attention" in told
    assert MODULE in told  # as text: were it read as HTML, its tags would be gone
    assert NASTY in told


@pytest.mark.browser
def test_switches_hide_a_model_everywhere(opened: Any) -> None:
    assert any("resnet18" in text for text in texts(opened))
    box = opened.get_by_role("checkbox", name="resnet18")
    box.focus()
    opened.keyboard.press("Space")
    assert not box.is_checked()
    for tab in opened.get_by_role("tab").all():
        tab.click()
        until(opened, DRAWN)
        assert not any("resnet18" in text for text in texts(opened))
        assert any("img" in text for text in texts(opened))
    assert not [e for e in opened.locator("[data-model='0']").all() if e.is_visible()]
    assert [e for e in opened.locator("[data-model='1']").all() if e.is_visible()]
    assert opened.locator("li[data-about]").count() == 1
    assert opened.locator("li[data-about]").is_hidden()  # a comparison with the hidden model
    opened.locator("[data-switch='1']").uncheck()
    assert "No model" in opened.locator("[data-chart=fourier-0-0]").text_content()
    box.check()
    assert any("resnet18" in text for text in texts(opened))
    assert opened.locator("[data-chart=fourier-0-0] path.point").count() == 5
    opened.locator("[data-switch='1']").check()
    assert opened.locator("[data-chart=fourier-0-0] path.point").count() == 12
    assert opened.locator("li[data-about]").is_visible()


@pytest.mark.browser
def test_dark_and_on_paper(opened: Any) -> None:
    ink = "getComputedStyle(document.querySelector('.chart .xtick text')).fill"
    brightness = f"({ink}).match(/\\d+/g).slice(0, 3).reduce((sum, x) => sum + Number(x), 0)"
    assert opened.evaluate(brightness) < 380
    opened.emulate_media(color_scheme="dark")
    until(opened, f"{brightness} > 380")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
    opened.emulate_media(color_scheme="dark", media="print")
    until(opened, f"{brightness} < 380")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.locator(".switches").is_hidden()
    assert opened.locator("[data-chart=fourier-1-0]").is_visible()  # everything is open
    assert opened.locator("[data-chart=fourier-1-1]").is_visible()
    assert opened.locator("details[open]").count() == opened.locator("details").count()
    opened.emulate_media(color_scheme="dark", media="screen")
    until(opened, f"{brightness} > 380")
    assert not opened.locator("details[open]").count()


@pytest.mark.browser
def test_on_a_phone(opened: Any) -> None:
    opened.set_viewport_size({"width": 380, "height": 800})
    until(opened, "[...document.querySelectorAll('.chart svg.main-svg')].every(s => s.clientWidth <= 380)")
    assert opened.evaluate("document.documentElement.scrollWidth") <= 380


@pytest.mark.browser
def test_the_panel_of_a_unit_by_keyboard(opened: Any) -> None:
    units = opened.locator(".word").nth(1).locator(".unit")
    panel = opened.locator("#unit")
    units.first.focus()
    opened.keyboard.press("ArrowRight")
    until(opened, "document.querySelector('#unit h3')?.textContent.includes('blocks.1 · 65 × 192')")
    row = panel.locator("tr", has_text="Accuracy without it")
    assert row.locator("td").all_text_contents() == ["−2 [−12, 8]"]
    assert panel.locator(".js-line").count() == 2  # spectrum and transfer function; there is no similarity
    opened.keyboard.press("ArrowRight")
    until(opened, f"document.querySelector('#unit h3').textContent.includes({MODULE!r})")  # as text
    opened.keyboard.press("Enter")
    assert opened.evaluate("document.activeElement.textContent") == "Pin to compare"
    opened.keyboard.press("Enter")
    opened.locator(".word").first.locator(".unit").nth(3).focus()
    until(opened, "document.querySelectorAll('#unit thead th').length === 2")
    assert panel.locator("thead th").all_text_contents() == ["unit 3 of resnet18", f"pinned: unit 2 of {NASTY}"]
    assert row.locator("td").all_text_contents() == ["−4 [−14, 6]", "−3 [−13, 7]"]
    assert panel.locator(".js-line").count() == 4
    assert "unit=0.3&pin=1.2" in opened.evaluate("location.hash")
    panel.get_by_role("button", name="Unpin").click()
    panel.locator("button").last.focus()
    opened.keyboard.press("Escape")
    assert panel.is_hidden()
    assert opened.evaluate("document.activeElement.dataset.unit") == "0.3"


@pytest.mark.browser
def test_the_panel_does_not_cover_its_unit(opened: Any) -> None:
    for width, unit in itertools.product((1280, 390), ("0.0", "1.5")):
        opened.set_viewport_size({"width": width, "height": 800})
        block = opened.locator(f"[data-unit='{unit}']")
        edge = "start" if unit == "0.0" else "end"  # of the window
        block.evaluate(f"block => block.scrollIntoView({{ block: '{edge}', behavior: 'instant' }})")
        block.evaluate("block => block.focus({ preventScroll: true })")
        until(opened, f"document.querySelector('#unit h3')?.textContent.startsWith('unit {unit[-1]}')")
        opened.wait_for_timeout(100)
        place, panel = block.bounding_box(), opened.locator("#unit").bounding_box()
        assert place["y"] + place["height"] <= panel["y"] or panel["y"] + panel["height"] <= place["y"], (width, unit)
    opened.locator("#unit").get_by_role("button", name="Close").click()


@pytest.mark.browser
def test_a_link_brings_back_what_was_shown(browser: Any, opened: Any) -> None:
    opened.get_by_role("tab", name="Transfer function").click()
    opened.locator("[data-log=variance-0-0]").uncheck()
    opened.locator("[data-switch='0']").uncheck()
    opened.locator("#lesion-0-0 .permalink").click()
    link = opened.evaluate("location.href")
    other, _ = visit(browser, link)
    until(other, "document.querySelector('[data-chart=lesion-0-0] .points path')")
    assert other.locator("[data-chart=lesion-0-0]").bounding_box()["y"] < 900
    assert not other.locator("[data-switch='0']").is_checked()
    assert not other.locator("[data-log=variance-0-0]").is_checked()
    assert other.locator("#fourier-1-1").is_visible()
    other.close()


def downloaded(tab: Any, selector: str, path: Path) -> str:
    with tab.expect_download() as download:
        tab.locator(selector).click()
    download.value.save_as(path)
    return download.value.suggested_filename


@pytest.mark.browser
def test_rows_tables_claims_and_charts_to_take_away(opened: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert downloaded(opened, "[data-csv=lesion]", path) == "lesion.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    made = [row for name, kinds in (("resnet18", "cc cc"), (NASTY, "amamam")) for row in results_of(name, kinds)[2].rows()]
    assert [row["model"] for row in rows] == [row["model"] for row in made]
    assert [float(row["nll_change"]) for row in rows] == pytest.approx([row["nll_change"] for row in made])
    downloaded(opened, "[data-table-csv=table-calibration-metrics]", path)
    with path.open(newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["Metric", "resnet18", NASTY]
    assert table[1][1:] == ["50 [40, 60]", "50 [40, 60]"]
    downloaded(opened, "[data-claims-csv]", path)
    with path.open(newline="") as file:
        claims = list(csv.DictReader(file))
    assert f"{NASTY}; resnet18" in {row["models"] for row in claims}
    assert {float(row["value"]) for row in claims if row["id"] == "fourier/attention-relative"} == {-1.0}
    assert downloaded(opened, "[data-export=fourier-0-0][data-format=svg]", path) == "fourier-0-0.svg"
    assert path.read_text().startswith("<svg")
    assert re.search(r"<rect[^>]*fill: rgb\(255, 255, 255\); fill-opacity: 1", path.read_text())  # the colour of the page
    assert downloaded(opened, "[data-export=fourier-0-0][data-format=png]", path) == "fourier-0-0.png"
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.browser
def test_only_what_comes_into_sight_is_drawn(browser: Any, address: str) -> None:
    other, _ = visit(browser, address, viewport={"width": 1280, "height": 300})
    assert not other.locator("[data-chart=calibration-0-0] svg").count()
    other.locator("#calibration").scroll_into_view_if_needed()
    until(other, "document.querySelector('[data-chart=calibration-0-0] .points path')")
    other.close()


@pytest.mark.browser
def test_a_print_is_complete(browser: Any, address: str) -> None:
    """Charts that were never in sight are on paper too."""
    other, _ = visit(browser, address, viewport={"width": 1280, "height": 300})
    other.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert other.evaluate("[...document.querySelectorAll('[data-chart]')].every(c => c.querySelector('.cartesianlayer'))")
    other.close()


@pytest.mark.browser
def test_depth_is_that_of_the_model(browser: Any, tmp_path: Path) -> None:
    """Rows about two of five units stand where these units are."""
    first = results_of("m", "ccccc")[1]
    some = [row for row in first.table if row["unit"] in (1, 4)]
    save_results(tmp_path, [("m", replace(first, table=some)), ("m", results_of("m", "ccccc")[0])])
    tab, _ = visit(browser, write_report(tmp_path).as_uri())
    scroll_through(tab)
    until(tab, DRAWN)
    assert tab.evaluate("document.querySelector('[data-chart=variance-0-0]').data.at(-1).x") == pytest.approx([2 / 5, 1])
    assert tab.evaluate("document.querySelector('[data-chart=fourier-0-0]').data.at(-1).x") == pytest.approx(np.arange(6) / 5)
    tab.close()


# --- a survey


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of 14 models of two families."""
    folder = tmp_path_factory.mktemp("survey")
    names = [f"{family}_{i}" for i in range(7) for family in ("vit", "resnet")]
    save(folder, [(name, name, "amam" if name.startswith("vit") else "cc cc") for name in names])
    return write_report(folder).as_uri()


@pytest.mark.browser
def test_search_filter_and_sort_of_a_survey(browser: Any, survey: str) -> None:
    tab, complaints = visit(browser, survey)
    scroll_through(tab)
    until(tab, DRAWN)
    panels = "document.querySelector('[data-chart=fourier-0-0]').layout.annotations.map(a => a.text)"
    assert tab.evaluate(panels) == ["<b>resnet (7)</b>", "<b>vit (7)</b>"]  # aggregates by family
    assert "12 of 14 models are drawn" in tab.locator("[data-limited=fourier-1-0]").text_content()
    tab.locator("[data-search]").fill("vit")
    assert tab.locator("[data-shown]").text_content() == "7 of 14 models"
    until(tab, "document.querySelector('[data-chart=fourier-1-0]').layout.annotations.length === 7")
    assert tab.locator("[data-limited=fourier-1-0]").is_hidden()
    assert tab.locator("#table-models tbody tr:visible").count() == 7
    until(tab, "document.querySelector('#table-calibration-metrics')")
    assert tab.locator("#table-calibration-metrics tbody tr:visible").count() == 7
    name = tab.locator("#table-models thead").get_by_role("button", name="Model")
    name.click()
    name.click()
    names = "document.querySelector('[data-chart=fourier-1-0]').layout.annotations.map(a => a.text)"
    until(tab, f"{names}[0] === '<b>vit_6</b>'")  # in the order of the table
    link = tab.evaluate("location.href")
    other, _ = visit(browser, link)
    assert other.locator("[data-shown]").text_content() == "7 of 14 models"
    assert other.locator("#table-models tbody tr:visible th").first.text_content() == "vit_6"
    other.close()
    tab.locator("[data-word='1']").dispatch_event("click")
    until(tab, "document.querySelector('#unit h3')?.textContent.includes('resnet_1')")
    tab.locator("summary", has_text="Each of the 14").first.click()
    until(tab, "document.querySelectorAll('details[open] li').length === 14")
    assert tab.locator("details[open] li:visible").count() == 7
    assert complaints == []
    tab.close()


@pytest.mark.browser
def test_a_median_is_that_of_the_lines_of_a_family(browser: Any, survey: str) -> None:
    """Of seven equal lines it is the line itself, also between its points."""
    tab, _ = visit(browser, survey)
    scroll_through(tab)
    until(tab, DRAWN)
    lines = tab.evaluate(
        "document.querySelector('[data-chart=variance-0-0]').data.filter(t => t.xaxis === 'x2').map(t => [t.x, t.y])"
    )
    (x, y), (at, middle) = lines[0], lines[-1]
    assert len(lines) == 8
    assert middle == pytest.approx(np.interp(at, x, y))
    tab.close()


# --- for everybody


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_has_nothing_serious_to_say(browser: Any, address: str, survey: str, width: int, scheme: str) -> None:
    axe = axe_script()
    for page in (address, survey):
        tab, _ = visit(browser, page, viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
        scroll_through(tab)
        until(tab, DRAWN)
        tab.locator("[data-unit='0.1'], [data-word='0']").first.dispatch_event("click")
        until(tab, "!document.querySelector('#unit').hidden")
        tab.add_script_tag(content=axe)
        violations = tab.evaluate(
            "axe.run().then(found => found.violations.map(each => [each.impact, each.id, each.nodes.map(node => node.html)]))"
        )
        assert [each for each in violations if each[0] in ("serious", "critical")] == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        tab.close()


def axe_script() -> str:
    """axe-core, from the Python package that holds it."""
    pytest.importorskip("axe_playwright_python")
    return files("axe_playwright_python").joinpath("axe.min.js").read_text()


@pytest.mark.browser
def test_axe_would_find_a_fault(browser: Any, address: str) -> None:
    tab, _ = visit(browser, address, bypass_csp=True)
    tab.evaluate("document.querySelector('[data-csv]').textContent = ''")
    tab.add_script_tag(content=axe_script())
    assert "button-name" in tab.evaluate("axe.run().then(found => found.violations.map(each => each.id))")
    tab.close()


# --- served


@pytest.mark.browser
def test_a_served_page_follows_its_folder(browser: Any, made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "study"))
    shutil.move(folder / "resnet" / "lesion", tmp_path / "lesion")
    with serving(folder) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        assert server.server_address[0] == "127.0.0.1"
        address = f"http://127.0.0.1:{server.server_port}/"
        tab, complaints = visit(browser, address)
        assert tab.locator("[data-unit]").count() == 10
        assert "resnet18: ○ not run" in " ".join(tab.locator("#lesion").text_content().split())
        tab.locator("[data-switch='1']").uncheck()
        tab.evaluate("window.before = true")
        shutil.move(tmp_path / "lesion", folder / "resnet" / "lesion")
        until(tab, "!window.before && 'unpacked' in document.documentElement.dataset")
        assert "not run" not in tab.locator("#lesion").text_content()
        assert not tab.locator("[data-switch='1']").is_checked()  # the address kept it
        assert complaints == []
        tab.close()
        server.shutdown()


def test_the_server_answers_this_machine_only_and_nothing_but_the_page(made: Path) -> None:
    with serving(made) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

        def status(path: str, host: str | None = None) -> int:
            connection = HTTPConnection("127.0.0.1", server.server_port, timeout=30)
            connection.request("GET", path, headers={"Host": host} if host else {})
            return connection.getresponse().status

        assert [status("/"), status("/version")] == [200, 200]
        assert [status("/study.json"), status("/../study.json"), status("/resnet/fourier/rows.parquet")] == [404] * 3
        assert status("/", host="example.org") == 403  # a foreign name that leads here
        server.shutdown()
    with pytest.raises(UserError, match="no folder"), serving(made / "none"):
        pass


# --- in Firefox


@pytest.mark.browser
def test_in_firefox(address: str, tmp_path: Path) -> None:
    executable = shutil.which("firefox") or shutil.which("firefox-esr")
    if executable is None:
        pytest.skip("no firefox is installed")
    with firefox(executable, tmp_path / "profile") as browser:

        def until_true(condition: str) -> None:
            for _ in range(300):
                if browser.value(condition):
                    return
                time.sleep(0.1)
            raise AssertionError(f"never came true: {condition}")

        browser.send("Navigate", url=address)
        until_true("'unpacked' in document.documentElement.dataset")
        browser.value("document.querySelector('#fourier').scrollIntoView({ behavior: 'instant' })")
        until_true("document.querySelectorAll('[data-chart=fourier-0-0] .points path.point').length === 12")
        assert browser.value("document.querySelector('[data-chart=calibration-0-0] svg')") is None  # not in sight yet
        browser.value("document.querySelector('[data-unit=\"0.3\"]').focus()")
        until_true("document.querySelector('#unit h3')?.textContent.startsWith('unit 3')")
        assert browser.value("document.querySelectorAll('#unit .js-line').length") == 2
        assert "unit=0.3" in browser.value("location.hash")
