"""The report in a real browser: an empty console, nothing wider than a phone. Needs Chromium."""

import re
import shutil
import subprocess

import pytest
from test_report import TRAINING, write_report

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for path in map(shutil.which, NAMES) if path), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium, which is not installed")

# A page that shows the report in a frame of a phone's width, and counts what is wider than it.
PROBE = """<iframe id=f src="report.html" style="width:{width}px;height:900px;border:0"></iframe>
<script>
onload = () => {{
  const page = document.getElementById("f").contentDocument;
  const wide = [...page.querySelectorAll("body *")].filter(
    x => x.getBoundingClientRect().right > {width} + 1 && !x.closest(".wide, svg, .text"));
  const figures = [...page.querySelectorAll("svg")].filter(
    x => x.getBoundingClientRect().width > 200);
  document.body.dataset.found =
    [page.documentElement.scrollWidth, wide.length, figures.length].join(" | ");
}}
</script>"""
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--allow-file-access-from-files",
    "--enable-logging=stderr",
    "--window-size=1300,1000",
    "--virtual-time-budget=4000",
    "--dump-dom",
]


@pytest.mark.parametrize("width", [390, 1200])
def test_the_report_fits_a_phone_and_a_desk(tmp_path, width):
    write_report(tmp_path / "report.html", ["a_proxy_of_a_long_name_" * 3, "squeezed"], TRAINING)
    (tmp_path / "probe.html").write_text(PROBE.format(width=width))
    command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path}/profile"]
    command.append(f"file://{tmp_path}/probe.html")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    scroll, wide, figures = re.search(r'data-found="([^"]*)"', done.stdout)[1].split(" | ")
    assert int(scroll) <= width
    assert int(wide) == 0
    assert int(figures) == 8
    assert "CONSOLE" not in done.stderr
