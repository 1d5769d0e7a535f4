"""The site in a browser: what it draws and answers, and that it serves a phone and a screen reader."""

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="needs the extra `dev`")
axe = pytest.importorskip("axe_core_python.selenium", reason="needs the extra `dev`")
By = pytest.importorskip("selenium.webdriver.common.by").By
Select = pytest.importorskip("selenium.webdriver.support.select").Select
WebDriverWait = pytest.importorskip("selenium.webdriver.support.wait").WebDriverWait

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs Debian's chromium and chromium-driver")

PAGES = (
    "index", "seed/index", "seed/zh", "guide/check", "guide/figures", "guide/migrate", "guide/architecture",
    "errata/index", "rules/index", "rules/activation/glu", "rules/block/attention_block", "rules/norm/rms_norm",
    "api/index", "search",
)  # fmt: skip
PHONE, SCREEN = (390, 844), (1300, 900)


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def served(site):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()


def sized(browser, size: tuple[int, int]) -> None:
    """The page's own size: a window cannot be made as narrow as a phone."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_without_an_error_and_fits_a_phone(name, served, browser):
    sized(browser, PHONE)
    browser.get(f"{served}/{name}.html")
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= PHONE[0]
    if name.startswith(("seed", "rules/norm")):
        assert len(browser.find_elements(By.CSS_SELECTOR, ".math .katex")) > 10


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_serious_keeps_a_reader_from_a_page(name, scheme, served, browser):
    sized(browser, SCREEN)
    wanted = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
    browser.get(f"{served}/{name}.html")
    found = axe.Axe().run(browser)["violations"]
    serious = [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")]
    assert serious == []


def test_the_search_finds_a_rule_by_another_name(served, browser):
    sized(browser, SCREEN)
    browser.get(f"{served}/search.html?q=swiglu")
    link = '#search-results a[href^="rules/activation/glu.html"]'
    assert WebDriverWait(browser, 30).until(lambda b: b.find_elements(By.CSS_SELECTOR, link))


def test_all_pages_are_there(site):
    assert [name for name in PAGES if not (site / f"{name}.html").is_file()] == []


def test_the_network_answers_a_changed_weight(served, browser):
    sized(browser, SCREEN)
    browser.get(f"{served}/seed/index.html")

    def cost() -> float:
        return float(browser.find_element(By.CSS_SELECTOR, 'table.matrix[aria-label="J"] td').text.replace("−", "-"))

    first, weight = cost(), browser.find_element(By.CSS_SELECTOR, '[aria-label="W2, row 1, column 1"]')
    weight.clear()
    weight.send_keys("5")
    changed = cost()
    assert changed != first
    step, again = browser.find_elements(By.CSS_SELECTOR, "#network button")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", step)
    step.click()
    assert cost() < changed
    again.click()
    assert cost() == first
    Select(browser.find_element(By.CSS_SELECTOR, "#network select")).select_by_value("identity")
    assert browser.find_element(By.CSS_SELECTOR, 'table.matrix[aria-label="dZ1"]').text


def test_a_formula_and_its_line_of_code_light_up_together(served, browser):
    sized(browser, SCREEN)
    browser.get(f"{served}/rules/norm/rms_norm.html")
    formula = browser.find_element(By.CSS_SELECTOR, 'tr[data-names="dx"]')
    line = browser.find_element(By.CSS_SELECTOR, 'span.line[data-names="dx"]')
    before = line.value_of_css_property("background-color")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", formula)
    webdriver.ActionChains(browser).move_to_element(formula).perform()
    assert line.value_of_css_property("background-color") != before
