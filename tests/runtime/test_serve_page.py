"""The page, in a real browser: a video goes in, the curve appears, the slider changes the choice, the film plays."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import pytest

pytest.importorskip("starlette", reason="the server is an extra: vsum-runtime[serve]")
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

from vsum_runtime.runtime.serve import Server  # noqa: E402


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(port=0) as found:
        yield found


@pytest.fixture(scope="module")
def film(changing_film: Callable[..., Path]) -> Path:
    return changing_film(n_seconds=10, block=20)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=900,1100"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


def shot(browser: Any, name: str) -> None:
    """Keep a picture of the page in the folder that VSUM_SCREENSHOTS names."""
    if folder := os.environ.get("VSUM_SCREENSHOTS"):
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


def test_a_video_is_summarized_played_and_saved(browser: Any, server: Server, film: Path, tmp_path: Path) -> None:
    wait = WebDriverWait(browser, 40)
    at = lambda name: browser.find_element(By.ID, name)  # noqa: E731
    kept = lambda: [float(r.get_attribute("width")) for r in at("curve").find_elements(By.CLASS_NAME, "kept")]  # noqa: E731

    browser.get(server.url)
    shot(browser, "empty")
    at("file").send_keys(str(film))
    wait.until(lambda _: at("result").is_displayed())
    wait.until(lambda _: kept())
    assert at("curve").find_element(By.CLASS_NAME, "scores").get_attribute("points").count(",") == 20
    assert sum(kept()) <= 150
    assert "of 0:10" in at("facts").text

    move = "slider = document.getElementById('budget'); slider.value = 60; slider.dispatchEvent(new Event('input'))"
    browser.execute_script(move)
    wait.until(lambda _: 300 < sum(kept()) <= 600)
    assert at("percent").text == "60 %"

    at("play").click()
    wait.until(lambda _: browser.execute_script("return document.getElementById('film').currentTime") > 0.2)
    assert browser.execute_script("return document.getElementById('film').duration") == pytest.approx(
        sum(kept()) / 100, abs=0.3
    )
    shot(browser, "light")
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    shot(browser, "dark")

    at("save-json").click()
    at("save-film").click()
    saved = [tmp_path / f"holiday.summary.{ending}" for ending in ("json", "mp4")]
    wait.until(lambda _: all(path.exists() for path in saved))
    assert json.loads(saved[0].read_text())["n_frames"] == 100
    with av.open(str(saved[1])) as container:
        assert len(list(container.decode(video=0))) == round(sum(kept()) / 10)
    assert browser.get_log("browser") == []


def test_a_file_that_is_no_video_is_told(browser: Any, server: Server, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    browser.get(server.url)
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "text.mp4"))
    alert = browser.find_element(By.ID, "error")
    WebDriverWait(browser, 20).until(lambda _: alert.is_displayed())
    assert "text.mp4" in alert.text
    assert not browser.find_element(By.ID, "work").is_displayed()


def test_everything_can_be_reached_by_name_and_by_keyboard(browser: Any, server: Server) -> None:
    browser.get(server.url)
    unnamed = browser.execute_script(
        "return [...document.querySelectorAll('input, button')].filter(e => !e.textContent.trim() && !e.labels?.length)"
        ".map(e => e.id)"
    )
    assert unnamed == []
    browser.switch_to.active_element.send_keys("\ue004")
    assert browser.switch_to.active_element.get_attribute("id") == "file"


def test_the_page_asks_for_nothing_from_elsewhere_and_says_so(server: Server) -> None:
    for path in ("/", "/page.css", "/page.js"):
        answer = httpx.get(server.url + path)
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "https://" not in answer.text
