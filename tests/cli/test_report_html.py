"""``report --html`` in a real browser: what one sees, clicks and types; no network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser as browsers
import pytest
import simstory
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait
from simfile import save
from simkernel import BIND, CDM, DEFAULT, SimKernel

from cdmtrace.analysis import candidates
from cdmtrace.analysis.frames import load
from cdmtrace.analysis.replay import check
from cdmtrace.cli import main

GOLDEN = Path(__file__).parents[1] / "golden/cdm-6.1-rfc.arrows"
HOSTILE = "</script><i>&<a"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """One browser for all tests of this file."""
    browsers.require()
    with browsers.started(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the story with all defects."""
    out = tmp_path_factory.mktemp("page") / "rfc.html"
    assert main(["report", "--html", str(out), str(GOLDEN)]) == 0
    return out


@pytest.fixture
def page(chromium: Chrome, written: Path) -> Chrome:
    """The page as it is when it has just been opened."""
    chromium.get(written.as_uri())
    settle(chromium)
    return chromium


def one(page: Chrome, selector: str) -> WebElement:
    return page.find_element(By.CSS_SELECTOR, selector)


def seen(page: Chrome, selector: str) -> list[WebElement]:
    """Return the elements that are shown."""
    return [
        element
        for element in page.find_elements(By.CSS_SELECTOR, selector)
        if element.is_displayed()
    ]


def settle(page: Chrome) -> None:
    """Wait until what was asked for is drawn."""
    WebDriverWait(page, browsers.PATIENCE, poll_frequency=0.05).until(
        lambda page: one(page, "#plot").get_attribute("aria-busy") == "false"
    )


def heads(page: Chrome) -> list[str]:
    """Return what stands above each lane that is drawn."""
    settle(page)
    drawn = page.find_elements(By.CSS_SELECTOR, "#plot .annotation-text")
    return [text for each in drawn if re.search(r" \(\S+\) ", text := each.text)]


def window(page: Chrome) -> tuple[float, float]:
    """Return the times (s) that are drawn."""
    settle(page)
    script = "return document.getElementById('plot')._fullLayout.xaxis.range"
    since, until = page.execute_script(script)
    return float(since), float(until)


def complaints(page: Chrome) -> list[dict[str, Any]]:
    """Return what the browser has to say of errors, scripts and the policy."""
    return [one for one in page.get_log("browser") if one["level"] != "INFO"]


def requests(page: Chrome) -> set[str]:
    """Return the addresses that were asked for."""
    told = [
        json.loads(one["message"])["message"] for one in page.get_log("performance")
    ]
    return {
        one["params"]["request"]["url"]
        for one in told
        if one["method"] == "Network.requestWillBeSent"
    }


# --- what it is ----------------------------------------------------------------


def test_it_asks_for_nothing_but_itself(chromium: Chrome, written: Path) -> None:
    chromium.get("about:blank")
    requests(chromium), complaints(chromium)
    chromium.get(written.as_uri())
    one(chromium, "button[data-finding='0']").click()
    one(chromium, "[data-zoom=in]").click()
    entries = "return performance.getEntriesByType('resource').map((one) => one.name)"
    assert chromium.execute_script(entries) == []
    assert requests(chromium) <= {written.as_uri(), "data:,"}
    assert complaints(chromium) == []


def test_the_policy_holds(page: Chrome) -> None:
    """A request, or a script that is not the page's own, is refused."""
    tried = page.execute_async_script(
        """
        const done = arguments[0], refused = [];
        document.addEventListener("securitypolicyviolation",
          (event) => refused.push(event.effectiveDirective));
        const script = document.createElement("script");
        script.textContent = "window.ran = true";
        document.body.append(script);
        const image = new Image();
        image.src = "https://example.invalid/x.png";
        fetch("https://example.invalid/").catch(() => setTimeout(() =>
          done([refused.sort(), window.ran ?? null]), 100));
        """
    )
    assert tried == [["connect-src", "img-src", "script-src-elem"], None]
    complaints(page)


def test_the_lanes_are_drawn_the_worst_first(page: Chrome) -> None:
    assert len(heads(page)) == 10
    assert heads(page)[0].startswith("story (62)")
    assert "100180000000-100180025000" in heads(page)[0]
    assert "CDM003 CDM010 CDM014" in heads(page)[0]
    assert one(page, "#shown").text == "1 to 10 of 33"
    legend = {each.text for each in seen(page, "#plot .legendtext")}
    assert {
        "tagged (cd)",
        "not tagged",
        "policy names a CDM node",
        "pages on node 1",
        "flags change, mmap lock read",
        "flags change, mmap lock write",
        "finding",
    } <= legend
    axes = {each.text for each in seen(page, "#plot .g-xtitle")}
    assert axes == {"seconds since recording began"}
    one(page, "[data-turn='1']").click()
    assert one(page, "#shown").text == "11 to 20 of 33"
    assert not any("100180000000-100180025000" in head for head in heads(page))


# --- what one does -------------------------------------------------------------


def test_by_process(page: Chrome) -> None:
    Select(one(page, "#by-process")).select_by_visible_text("63 story")
    assert all(head.startswith("story (63)") for head in heads(page))
    trace = load(GOLDEN)
    vmas = candidates.collect(trace, profile="intended")
    theirs = len(candidates.rows(vmas, pid=63, addr=None))
    found = [one.mm.pid for one in check(trace).findings].count(63)
    assert one(page, "#matches").text == (
        f"{theirs} of 33 VMAs, {found} of 15 findings"
    )
    assert {each.get_attribute("data-pid") for each in seen(page, "article")} == {"63"}
    assert {row.text.split()[0] for row in seen(page, "tr[data-lane]")} == {"63"}
    assert [cell.text for cell in seen(page, ".matrix td")] == ["67"]
    one(page, "#filter [type=reset]").click()
    assert [cell.text for cell in seen(page, ".matrix td")] == ["-", "115", "30", "-"]
    assert one(page, "#matches").text == "33 of 33 VMAs, 15 of 15 findings"


def test_by_rule(page: Chrome) -> None:
    one(page, "[data-rule=CDM003]").click()
    assert len(heads(page)) == 2
    assert all("CDM003" in head for head in heads(page))
    shown = [each.text for each in seen(page, "article h3 button")]
    assert shown == ["CDM003 unlocked-write"] * 2


@pytest.mark.parametrize(
    ("typed", "found"),
    [("100040000000", 1), ("0x100040016fff", 1), ("100040017001", 0), ("STORY", 33)],
)
def test_by_what_is_typed(page: Chrome, typed: str, found: int) -> None:
    one(page, "#by-text").send_keys(typed)
    assert one(page, "#matches").text.startswith(f"{found} of 33 VMAs")
    assert len(heads(page)) == min(found, 10)


def test_time_is_enlarged_and_moved(page: Chrome) -> None:
    whole = window(page)
    assert 4.6 < whole[0] < 4.75
    one(page, "[data-zoom=in]").click()
    half = window(page)
    assert half[1] - half[0] == pytest.approx((whole[1] - whole[0]) / 2, rel=1e-3)
    one(page, "[data-zoom=right]").click()
    later = window(page)
    assert later[0] - half[0] == pytest.approx((half[1] - half[0]) / 4, rel=1e-3)
    assert one(page, "#window").text.startswith(f"{later[0]:.6f} s to ")
    plot = one(page, "#plot")
    plot.send_keys(Keys.ARROW_LEFT)
    assert window(page) == pytest.approx(half)
    plot.send_keys("-")
    plot.send_keys("0")
    assert window(page) == pytest.approx(whole)


def test_a_time_is_dragged_over(page: Chrome) -> None:
    whole = window(page)
    area = one(page, "#plot .xy .nsewdrag")
    page.execute_script("arguments[0].scrollIntoView({block: 'start'})", area)
    drag = ActionChains(page)
    drag.move_to_element_with_offset(area, -200, -240).click_and_hold()
    drag.move_by_offset(100, 0).pause(0.1).move_by_offset(100, 0).release().perform()
    middle = (whole[0] + whole[1]) / 2
    since, until = window(page)
    assert until == pytest.approx(middle, abs=0.01)
    share = 200 / area.size["width"]
    assert until - since == pytest.approx((whole[1] - whole[0]) * share, rel=0.05)
    # The lanes have not moved.
    assert len(heads(page)) == 10


def test_a_finding_leads_to_its_lane_and_its_time(page: Chrome) -> None:
    article = one(page, "article[data-finding='0']")
    witness = one(page, "article[data-finding='0'] pre").text
    one(page, "article[data-finding='0'] button").click()
    assert heads(page)[0].split()[:3] == ["story", "(62)", "100040000000-100040017000"]
    since, until = window(page)
    assert 4.7 < since < 4.724411
    assert 4.791004 < until < 4.81
    told = one(page, "#details").text
    assert witness in told
    assert "1b7f4b7b2d775104" in told
    assert "That flag is a one-way trip." in told
    assert "--pid 62 --addr 100040000000" in told
    assert "chosen" in str(article.get_attribute("class"))
    one(page, "#plot").send_keys(Keys.ESCAPE)
    assert not one(page, "#details").is_displayed()


def test_a_finding_that_is_filtered_out_is_shown_again(page: Chrome) -> None:
    Select(one(page, "#by-process")).select_by_visible_text("64 story")
    page.execute_script("document.querySelector('[data-finding=\"0\"] button').click()")
    assert "100040000000-100040017000" in heads(page)[0]
    assert one(page, "#matches").text.startswith("33 of 33")


def test_a_mark_tells_of_its_rows_and_the_lock(page: Chrome) -> None:
    # The one that was made under the read lock: it is drawn as no other.
    one(page, "[data-rule=CDM010]").click()
    names = "return document.getElementById('plot').data.map((one) => one.name)"
    order = page.execute_script(names)
    assert order.count("flags change, mmap lock read") == 1
    script = """
      const plot = document.getElementById("plot");
      const trace = plot.calcdata.find((one) =>
        one[0].trace.name === "flags change, mmap lock read");
      return trace[0].node3.node();
    """
    marked = page.execute_script(script).find_element(By.CSS_SELECTOR, ".point")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", marked)
    ActionChains(page).move_to_element(marked).pause(0.3).perform()
    hover = one(page, "#plot .hoverlayer").text
    assert "flags - -> cd" in hover
    assert "mmap lock: read" in hover
    ActionChains(page).click().perform()
    cells = [cell.text for cell in seen(page, "#details td")]
    assert cells[3:6] == ["story/62", "read", "- -> cd"]


def test_the_table_of_vmas_leads_to_all_marks_of_one(page: Chrome) -> None:
    one(page, "button[data-lane='5']").click()
    name = one(page, "button[data-lane='5']").text
    assert name in heads(page)[0]
    assert name in one(page, "#details h3").text
    assert len(seen(page, "#details tbody tr")) > 1


def test_dark_and_light_are_not_the_same_and_it_can_be_printed(page: Chrome) -> None:
    drawn = """
      const ground = document.getElementById("plot")._fullLayout.paper_bgcolor;
      const style = getComputedStyle(document.documentElement);
      return [ground, style.getPropertyValue("--ground").trim()];
    """
    grounds = []
    for scheme in ("dark", "light"):
        page.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )

        def has_come(page: Chrome) -> bool:
            plot, rest = page.execute_script(drawn)
            return plot == rest not in grounds

        WebDriverWait(page, browsers.PATIENCE, poll_frequency=0.05).until(has_come)
        grounds.append(page.execute_script(drawn)[0])
    assert len(set(grounds)) == 2
    assert page.execute_cdp_cmd("Page.printToPDF", {})["data"]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    # What was made for paper is gone again.
    assert one(page, "#plot").size["width"] > 1000


def test_a_narrow_window_has_all_of_it(page: Chrome) -> None:
    size = {"width": 420, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.get(page.current_url)
    try:
        wide = "return document.documentElement.scrollWidth"
        assert page.execute_script(wide) <= 420
        assert len(heads(page)) == 10
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


# --- what somebody else does -----------------------------------------------------


def test_a_name_of_a_task_is_text_and_nothing_else(
    chromium: Chrome, tmp_path: Path
) -> None:
    kernel = SimKernel("rfc")
    task = kernel.process(HOSTILE)
    task.mbind(task.mmap(1).start, 1)
    vma = task.mmap(3)
    task.mbind(vma.start, 3, BIND, CDM)
    task.faults(vma)
    task.dontneed(vma.start, 3)
    task.mbind(vma.start, 3, DEFAULT)
    recording = save(kernel.trace(), tmp_path / "hostile.arrows")
    out = tmp_path / "hostile.html"
    assert main(["report", "--html", str(out), str(recording)]) == 0
    complaints(chromium)
    chromium.get(out.as_uri())
    assert len(heads(chromium)) == 2
    assert all(head.startswith(f"{HOSTILE} (") for head in heads(chromium))
    for selector in ("article button", "button[data-lane='0']"):
        one(chromium, selector).click()
        assert HOSTILE in one(chromium, "#details").text
    options = [each.text for each in Select(one(chromium, "#by-process")).options]
    assert f"{task.pid} {HOSTILE}" in options
    for stranger in ("i", "a", "svg a"):
        assert chromium.find_elements(By.CSS_SELECTOR, stranger) == []
    assert len(chromium.find_elements(By.TAG_NAME, "script")) == 4
    assert complaints(chromium) == []


def test_what_was_lost_is_drawn_where_it_may_lie(
    chromium: Chrome, tmp_path: Path
) -> None:
    kernel = SimKernel("rfc")
    simstory.tell(kernel)
    kernel.lose("alloc", 0)
    recording = save(kernel.trace(), tmp_path / "lossy.arrows")
    out = tmp_path / "lossy.html"
    assert main(["report", "--html", str(out), str(recording)]) == 0
    chromium.get(out.as_uri())
    settle(chromium)
    script = """
      const all = document.getElementById("plot").data;
      const lost = all.find((one) => one.name === "events lost");
      return [lost.base, lost.x, lost.hovertext];
    """
    (since,), (long,), (told,) = chromium.execute_script(script)
    assert "LOST: 1 row of alloc" in told
    assert since + long == pytest.approx(kernel.now / 1e9, abs=1e-3)
    assert "LOST: 1 row of alloc" in one(chromium, "main").text


# --- the command ---------------------------------------------------------------


def test_what_is_there_is_replaced_by_force_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.html"
    out.write_text("mine")
    words = ["report", "--html", str(out), str(GOLDEN)]
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main([*words, "--force"]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"cdmtrace: {out}: 4.7 MiB, for any browser\n"
    assert out.read_text().startswith("<!doctype html>")


def test_the_tables_are_not_those_of_a_page(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, said in (
        (["--force"], "--force is about --html"),
        (["--profile", "np"], "--profile is about --html"),
        (["--html", "x.html", "--format", "csv"], "--format is not about --html"),
    ):
        assert main(["report", *words, str(GOLDEN)]) == 2
        assert said in capsys.readouterr().err
    # A variable is for all commands, and says nothing of this one.
    monkeypatch.setenv("CDMTRACE_REPORT_PROFILE", "rfc-v2")
    assert main(["report", str(GOLDEN)]) == 0
    assert capsys.readouterr().err == ""


def test_a_page_that_cannot_be_made_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.html"
    assert main(["report", "--html", str(out), __file__]) == 2
    assert "is not a trace file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_recording_that_was_cut_has_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn, out = tmp_path / "torn.arrows", tmp_path / "torn.html"
    data = GOLDEN.read_bytes()
    torn.write_bytes(data[: len(data) * 2 // 3])
    assert main(["report", "--html", str(out), str(torn)]) == 0
    assert "cut: " in capsys.readouterr().err
    assert "<dt>cut</dt>" in out.read_text()
