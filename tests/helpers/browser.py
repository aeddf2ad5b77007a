"""A page in a real browser: what it looks like to scripts, and what it asks a server for."""

import contextlib
import functools
import html
import http.server
import json
import lzma
import re
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

AXE = Path(__file__).parent / "axe"
REPORTING = """axe.run().then(({violations}) => {
  const first = violations.map(v => `${v.id}: ${v.nodes[0].html.slice(0, 200)}`);
  document.documentElement.dataset.axe = JSON.stringify(first);
});"""
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
ALONE = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextlib.contextmanager
def served(folder):
    """Serve a folder on this machine; gives its address and the paths that were asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()


def opened(address, *options):
    """The document, after its scripts, as a browser opens it that knows nothing yet."""
    with tempfile.TemporaryDirectory() as profile:
        command = [BROWSER, *ALONE, *options, f"--user-data-dir={profile}", "--dump-dom", address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def violations(page, folder, *, dark=False, width=1280):
    """What axe-core finds in a page: the rule, and the first element that breaks it.

    A copy of the page is looked at, without the policy that would keep the script from running.
    """
    script = lzma.decompress((AXE / "axe.min.js.xz").read_bytes()).decode()
    (folder / "axe.js").write_text(f"{script}\n{REPORTING}", encoding="utf-8")
    copy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    copy = copy.replace("</body>", '<script src="axe.js"></script></body>')
    (folder / "axe.html").write_text(copy, encoding="utf-8")
    look = ["--virtual-time-budget=60000", f"--window-size={width},900"]
    look += ["--blink-settings=preferredColorScheme=0"] * dark
    with served(folder) as (address, _):
        document = opened(f"{address}/axe.html", *look)
    (found,) = re.findall(r'data-axe="([^"]*)"', document)
    return json.loads(html.unescape(found))
