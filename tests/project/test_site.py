"""The documentation site: complete, built strictly, and usable in a browser, on a phone too."""

import functools
import http.server
import re
import shutil
import subprocess
import sys
import threading

import pytest
from doc_commands import PAGES, ROOT

SITE = ROOT / "docs" / "mkdocs.yml"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

ANCHORS_WITHOUT_TARGET = """
[...document.querySelectorAll('a[href^="#"]')].map(link => decodeURIComponent(link.hash.slice(1)))
.filter(name => name && !document.getElementById(name))
"""


def test_navigation_has_every_page_of_the_manual():
    listed = re.findall(r"- (?:[\w ]+: )?([\w-]+)\.md", SITE.read_text())
    assert len(listed) == len(set(listed))
    assert {page.stem for page in PAGES} - set(listed) == set()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site, with every warning as an error, and return its folder."""
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(SITE), "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        loaded = re.findall(r"<(?:script|img|link)[^>]*(?:src|href)=\"?(https?:[^\"> ]*)", page.read_text())
        assert loaded == [], page
    assert 'href="../theory/"' in (site / "tutorial" / "index.html").read_text()  # pages that the text mentions
    assert "clip_grad_norm_" in (site / "names" / "index.html").read_text()


@pytest.fixture(scope="module")
def browser(site):
    """Return a browser and the address at which it finds the site."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium, f"http://127.0.0.1:{server.server_port}/"
        chromium.close()
    server.shutdown()


@pytest.mark.slow
def test_every_page_fits_a_phone_has_its_pictures_and_no_dead_link(browser, site):
    chromium, address = browser
    page = chromium.new_page(viewport={"width": 390, "height": 844})
    targets = set()
    for file in sorted(site.rglob("index.html")):
        page.goto(address + file.parent.relative_to(site).as_posix())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, file
        page.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)"), file
        assert page.evaluate(ANCHORS_WITHOUT_TARGET) == [], file
        targets |= set(page.evaluate("[...document.links].map(link => link.href.split('#')[0])"))
    ours = {target for target in targets if target.startswith(address)}
    assert len(ours) > len(PAGES)
    assert {target for target in ours if not page.request.get(target).ok} == set()


@pytest.mark.slow
def test_search_dark_mode_and_the_filter_of_long_tables(browser):
    chromium, address = browser
    page = chromium.new_page(viewport={"width": 1280, "height": 900}, color_scheme="dark")
    page.goto(address + "architectures/")
    assert page.get_attribute("body", "data-md-color-scheme") == "slate"  # as the system is
    rows = page.locator("table >> nth=0 >> tbody tr")
    total = rows.count()
    page.fill("input.rows >> nth=0", "mistral")
    shown = [row.inner_text() for row in rows.all() if row.is_visible()]
    assert 0 < len(shown) < total / 10
    assert all("mistral" in row.lower() for row in shown)
    page.locator("input.md-search__input").press_sequentially("clip_grad_norm_")
    page.wait_for_selector(".md-search-result__item")
    assert "clip_grad_norm_" in page.inner_text(".md-search-result__list")
