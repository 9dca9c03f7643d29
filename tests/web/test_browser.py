"""The page as a person uses it, in a headless Chromium with the shipped model behind it.

The photograph is a grey sheet with the shipped astronaut in its right half, so where an answer must lie is known.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phrase_loc.images import load_image
from phrase_loc.localizer import PhraseLocalizer
from phrase_loc.web.app import create_app
from tests.web.browser import Page, serving, until
from tests.web.conftest import LIMITS

SIZE = (900, 600)
ASTRONAUT = (480, 120, 880, 520)  # where it is pasted
WOMAN, FLAG = "a smiling woman", "the flag"


@pytest.fixture(scope="module")
def photo(tmp_path_factory, root) -> Path:
    sheet = Image.new("RGB", SIZE, (120, 130, 120))
    with Image.open(root / "phrase_loc" / "examples" / "astronaut.png") as astronaut:
        x1, y1, x2, y2 = ASTRONAUT
        sheet.paste(astronaut.convert("RGB").resize((x2 - x1, y2 - y1)), (x1, y1))
    path = tmp_path_factory.mktemp("photos") / "sheet.png"
    sheet.save(path)
    return path


@pytest.fixture
def page(browser, address) -> Page:
    return Page(browser, address).open()


def test_a_box_at_the_right_place(page, photo, shipped):
    page.choose(photo).ask(f"{WOMAN}, {FLAG}")
    assert page.phrases() == [WOMAN, FLAG]
    canvas = page.one("#canvas")
    assert canvas.size["width"] / canvas.size["height"] == pytest.approx(SIZE[0] / SIZE[1], rel=0.02)
    expected = shipped.locate(shipped.look(load_image(photo)), [WOMAN, FLAG], top_k=1)
    for answer in expected:
        box = page.spoken_box(answer.phrase)
        # the page ranks by maps of 8 bits, so a mean of boxes may move by a few of the sheet's pixels
        assert box == pytest.approx(answer.boxes[0].tolist(), abs=4)
        assert (box[0] + box[2]) / 2 > ASTRONAUT[0]
        assert page.framed(box, answer.phrase, SIZE) >= 2
    assert page.framed([60, 100, 300, 400], WOMAN, SIZE) == 0  # and nowhere else


def test_sliders_act_without_a_request(page, photo):
    page.choose(photo).ask(WOMAN)
    asked, before, painted = page.requests(), page.spoken_box(WOMAN), page.pixels()
    page.slide("gamma", 0.05)
    wide = page.spoken_box(WOMAN)
    page.slide("gamma", 0.9)
    tight = page.spoken_box(WOMAN)
    assert area(wide) > area(before) > area(tight)
    page.slide("strength", 0)
    page.slide("gamma", 0.4)
    assert page.spoken_box(WOMAN) == before
    plain = page.pixels()
    assert (plain != painted).any()  # the tint has gone
    page.slide("top-k", 4)
    assert (page.pixels() != plain).any()
    assert "top_k=4" in page.driver.current_url
    time.sleep(0.2)
    assert page.requests() == asked


def test_pointing_at_a_phrase_shows_it_alone(page, photo):
    from selenium.webdriver import ActionChains

    page.choose(photo).ask(f"{WOMAN}, {FLAG}")
    woman, flag = page.spoken_box(WOMAN), page.spoken_box(FLAG)
    together = page.pixels()
    ActionChains(page.driver).move_to_element(page.card(WOMAN)).perform()
    until(lambda: page.spoken_box(FLAG) is None, "the other box leaves")
    assert page.framed(woman, WOMAN, SIZE) == 3
    assert page.framed(flag, FLAG, SIZE) == 0
    corner = (slice(20, 60), slice(20, 60))
    assert page.pixels()[corner].mean() < 0.7 * together[corner].mean()  # its map is dark where nothing is
    ActionChains(page.driver).move_to_element(page.one("h1")).perform()
    until(lambda: page.spoken_box(FLAG), "the other box comes back")
    assert (page.pixels() == together).all()


def test_the_link_restores_photograph_phrases_and_settings(page, photo):
    page.choose(photo).ask(f"{WOMAN}, {FLAG}")
    page.slide("gamma", 0.75)
    link, box, painted = page.driver.current_url, page.spoken_box(WOMAN), page.pixels()
    page.open(link.removeprefix(page.address))
    assert page.phrases() == [WOMAN, FLAG]
    assert page.one("#gamma").get_attribute("value") == "0.75"
    assert page.spoken_box(WOMAN) == box
    assert (page.pixels() == painted).all()


def test_the_link_asks_for_a_photograph_that_is_no_longer_held(page, photo):
    page.open(f"#photo={32 * '0'}&name=sheet.png&p=a+smiling+woman&top_k=3")
    until(lambda: "choose it again" in page.text("#message"), "the page asks for the photograph")
    assert page.one("#start").is_displayed()
    page.choose(photo)
    assert page.spoken_box(WOMAN)
    assert page.one("#top-k").get_attribute("value") == "3"
    assert not page.one("#message").is_displayed()


def test_a_photograph_that_left_the_server_is_sent_again(browser, shipped, photo, tmp_path):
    other = tmp_path / "other.png"
    Image.new("RGB", (60, 40), "red").save(other)
    with serving(create_app(shipped, replace(LIMITS, scenes=1))) as address:
        page = Page(browser, address).open().choose(photo)
        push(address, other)
        page.ask(WOMAN)
        assert page.spoken_box(WOMAN)
        assert not page.one("#message").is_displayed()


def test_a_broken_file_is_said_in_one_sentence(page, photo, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 this is no photograph")
    page.choose(broken)
    assert page.one("#message").is_displayed()
    assert "image" in page.text("#message")
    assert page.text("#message").endswith(".")
    assert "\n" not in page.text("#message")
    page.choose(photo)
    assert not page.one("#message").is_displayed()
    assert page.one("#canvas").is_displayed()


def test_a_caption_becomes_its_phrases(page):
    page.ask("A smiling woman in an orange suit stands before a flag.")
    assert page.phrases() == ["A smiling woman", "an orange suit", "a flag"]
    assert "choose a photograph" in page.text("#message")
    page.one("#clear").click()
    assert page.phrases() == []


def test_unknown_words_are_not_found(page, photo):
    page.choose(photo).ask("zorglub")
    card = page.card("zorglub")
    assert "missing" in card.get_attribute("class")
    assert "not found" in card.text
    assert "unknown word" in card.text
    assert page.spoken_box("zorglub") is None
    assert "Nothing was found." in page.text("#caption")


def test_what_is_hardly_there_is_not_found(browser, photo):
    blind = PhraseLocalizer.from_pretrained("default", device="cpu")
    blind.model.config = replace(blind.model.config, calibration={"slope": 1.0, "offset": -100.0})
    with serving(create_app(blind)) as address:
        page = Page(browser, address).open().choose(photo).ask(WOMAN)
        assert "not found" in page.card(WOMAN).text
        assert page.spoken_box(WOMAN) is None
        assert "where it would look" in page.text("#caption")
        page.card(WOMAN).find_element("css selector", ".name").click()
        assert page.spoken_box(WOMAN)


@pytest.mark.parametrize("event", ["paste", "drop"])
def test_paste_and_drop(page, photo, event):
    page.hand(photo, event)
    assert page.one("#canvas").is_displayed()
    assert "sheet.png, 900 × 600" in page.text("#caption")


def test_words_of_a_phrase_and_of_a_point(page, photo):
    page.choose(photo).ask("an orange suit")
    next(
        b for b in page.card("an orange suit").find_elements("css selector", "button") if b.text == "words"
    ).click()
    page.idle()
    assert [c.text.split()[0] for c in page.all(".card .chips button")] == ["orange", "suit"]
    painted = page.pixels()
    page.run("document.querySelector('.card .chips button').focus()")
    until(lambda: page.spoken_box("an orange suit") is None, "the word stands alone")
    assert (page.pixels() != painted).any()
    page.one("#canvas").click()
    page.idle()
    words = page.all("#here-words button")
    assert len(words) == 12
    chosen = words[0].text
    words[0].click()
    page.idle()
    assert page.phrases() == ["an orange suit", chosen]


def test_methods_side_by_side(page, photo):
    page.choose(photo).ask(WOMAN)
    page.one("#compare-button").click()
    until(lambda: len(page.all("#compare canvas")) == 3, "three methods")
    page.idle()
    assert [f.text for f in page.all("#compare figcaption")] == [
        f"{name}: {WOMAN}" for name in ("contrastive MWP", "MWP", "Grad-CAM")
    ]
    pictures = page.run("return [...document.querySelectorAll('#compare canvas')].map((c) => c.toDataURL())")
    assert len(set(pictures)) == 3


def test_everything_by_keyboard(page, photo):
    from selenium.webdriver import Keys

    page.choose(photo)
    active = lambda: page.driver.switch_to.active_element  # noqa: E731
    assert active().get_attribute("id") == "phrase"
    active().send_keys(WOMAN, Keys.ENTER)
    page.idle()
    active().send_keys(FLAG, Keys.ENTER)
    page.idle()
    for _ in range(20):
        active().send_keys(Keys.TAB)
        if active().text == WOMAN:
            break
    assert page.spoken_box(FLAG) is None  # the focused phrase stands alone
    active().send_keys(Keys.ENTER)
    assert active().get_attribute("aria-pressed") == "true"
    active().send_keys(Keys.ESCAPE)
    assert active().get_attribute("aria-pressed") == "false"
    active().send_keys(Keys.DELETE)
    assert page.phrases() == [FLAG]
    page.run("document.getElementById('canvas').focus()")
    active().send_keys(Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.ENTER)
    page.idle()
    assert page.all("#here-words button")


def test_picture_and_json_are_saved(page, photo, downloads):
    page.choose(photo).ask(f"{WOMAN}, zorglub")
    page.one("#save-json").click()
    page.one("#save-png").click()
    file = downloads / "sheet_phrases.json"
    saved = json.loads(until(lambda: file.exists() and file.read_text(), "the JSON is saved"))
    assert saved["size"] == list(SIZE)
    woman, unknown = saved["predictions"]
    assert set(woman) == {"phrase", "words", "present", "peak", "boxes"}
    assert woman["boxes"][0]["xyxy"] == pytest.approx(page.spoken_box(WOMAN), abs=0.51)
    assert unknown["boxes"] == []
    picture = downloads / "sheet_phrases.png"
    until(picture.exists, "the picture is saved")
    with Image.open(picture) as shown:
        assert (np.asarray(shown.convert("RGB")) == page.pixels()).all()


def test_a_phone(page, photo):
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.open()
        assert not overflows(page)
        page.choose(photo).ask(f"{WOMAN}, a very long phrase about the white flag of the smiling astronaut")
        page.run("document.getElementById('settings').open = true")
        assert not overflows(page)
        assert page.one("#canvas").size["width"] > 300
        buttons = page.run("return [...document.querySelectorAll('button')].filter((b) => b.offsetHeight)"
                           ".map((b) => [b.textContent, b.offsetHeight])")  # fmt: skip
        assert all(height >= 28 for _, height in buttons), buttons
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_dark(page):
    light = ground(page)
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    try:
        assert min(light) > 220
        assert max(ground(page)) < 60
    finally:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_server_with_a_token_asks_for_it(browser, shipped):
    with serving(create_app(shipped, token="secret")) as address:
        page = Page(browser, address)
        browser.get("about:blank")
        browser.get(address)
        until(lambda: page.one("#token").is_displayed(), "the page asks for the token")
        page.one("#token").send_keys("secret\n")
        until(lambda: page.all("#examples button"), "the page starts")
        page.open("#token=secret")  # as `phrase-loc serve` prints it
        assert "secret" not in browser.current_url


def test_the_examples_answer_and_nothing_comes_from_elsewhere(page):
    page.driver.get_log("browser")
    for name in ("astronaut.png", "coffee.png", "chelsea.png"):
        page.open(f"#example={name}")
        assert page.phrases()
        assert any("not found" not in card.text for card in page.all(".card"))
        fetched = page.run("return performance.getEntriesByType('resource').map((e) => e.name)")
        assert all(url.startswith((page.address, "blob:", "data:")) for url in fetched)
    assert [line for line in page.driver.get_log("browser") if line["level"] == "SEVERE"] == []


def push(address: str, path: Path) -> None:
    """Somebody else sends a photograph."""
    import httpx2

    answer = httpx2.post(f"{address}api/look", files={"image": path.read_bytes()}, timeout=60)
    assert answer.status_code == 200


def area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def overflows(page: Page) -> bool:
    return page.run("return document.documentElement.scrollWidth > innerWidth")


def ground(page: Page) -> list[int]:
    colour = page.one("body").value_of_css_property("background-color")
    return [int(v) for v in colour[colour.index("(") + 1 : -1].split(",")[:3]]
