"""The report in a real browser: nothing on the console, nothing wider than a phone, in both themes. Needs Chromium."""

import re
import shutil
import subprocess

import pytest
from test_diagnostics import write_report

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium, which is not installed")
PROBE = """<iframe id=f src="report.html" style="width:{width}px;height:900px;border:0"></iframe><script>
onload = () => {{ const d = document.getElementById("f").contentDocument, e = d.documentElement;
  const wide = [...d.querySelectorAll("body *")].filter(x => x.getBoundingClientRect().right > {width} + 1 && !x.closest(".wide, svg, .text"));
  document.body.dataset.found = [e.scrollWidth, wide.length, d.querySelectorAll("svg").length, getComputedStyle(d.body).backgroundColor].join(" | "); }}
</script>"""


@pytest.mark.parametrize("theme, ground", [("light", "rgb(251, 250, 247)"), ("dark", "rgb(21, 23, 26)")])
@pytest.mark.parametrize("width", [390, 1200])
def test_the_report_fits_a_phone_and_a_desk_in_both_themes(tmp_path, theme, ground, width):
    metrics = [{"step": s, "loss": 0.7 / s, "accuracy": 1 - 0.5 / s} for s in range(1, 9)]
    write_report(tmp_path / "report.html", ["a_proxy_of_a_long_name_" * 3, "squeezed"], metrics)
    (tmp_path / "probe.html").write_text(PROBE.format(width=width))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--enable-logging=stderr", "--window-size=1300,1000", "--virtual-time-budget=4000"]
    flags += [f"--user-data-dir={tmp_path}/profile", f"--blink-settings=preferredColorScheme={0 if theme == 'dark' else 1}"]
    done = subprocess.run([BROWSER, *flags, "--dump-dom", f"file://{tmp_path}/probe.html"], capture_output=True, text=True, timeout=120)
    scroll, wide, plots, colour = re.search(r'data-found="([^"]*)"', done.stdout)[1].split(" | ")
    assert int(scroll) <= width and int(wide) == 0 and int(plots) == 8
    assert colour == ground
    assert "CONSOLE" not in done.stderr
