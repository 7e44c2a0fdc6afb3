"""The page of the example `order_service` in a real browser, driven over its own protocol without another tool.

Skipped without Chromium, unless ``PAGE_CHROMIUM`` is set: then it must exist; the value may be its path. With
``PAGE_PICTURES``, a folder, the tests save their screenshots there.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import threading
from base64 import b64decode
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx
import pytest
import uvicorn
from order_service.app import create_app
from order_service.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Generator

    from order_shop import Shop

pytestmark = pytest.mark.live

PATIENCE = 30.0
NAMES = ("chromium", "chromium-browser", "google-chrome")
SIZES = ((390, 844), (1280, 800))
PICTURES = os.environ.get("PAGE_PICTURES", "")  # a folder for screenshots
PROMISED = os.environ.get("PAGE_CHROMIUM", "")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--no-first-run",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--remote-debugging-pipe",
]
UNTIL = """new Promise((found) => {
  const look = () => (%s) && (found(true), true);
  look() || new MutationObserver(look).observe(document, {subtree: true, childList: true, attributes: true});
})"""
SEEN = """(() => {
  const box = (node) => node.getBoundingClientRect();
  const seen = (node) => box(node).width > 0 && box(node).left >= 0 && box(node).right <= WIDTH;
  const picture = document.querySelector("img");
  return {
    text: document.body.innerText,
    code: seen(picture) ? [picture.naturalWidth, box(picture).width] : null,
    links: [...document.querySelectorAll("a")].filter(seen).map((link) => link.getAttribute("href")),
    wide: document.documentElement.scrollWidth > WIDTH,
  };
})()"""


def browser_path() -> str:
    """Return the browser; without one the test is skipped, unless PAGE_CHROMIUM requires it."""
    found = next((path for name in (PROMISED, *NAMES) if name and (path := shutil.which(name))), None)
    if found is not None:
        return found
    if PROMISED:
        pytest.fail("Chromium is missing, and PAGE_CHROMIUM requires it", pytrace=False)
    return pytest.skip("chromium is not installed")


class Browser:
    """A headless Chromium with one page, controlled through two pipes (the DevTools protocol); a context manager."""

    def __init__(self, folder: Path) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        script = 'exec 3<&"$0" 4>&"$1"; shift; exec "$@"'  # Chromium expects its pipes there
        command = [browser_path(), *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", script, str(theirs_in), str(theirs_out), *command],
            pass_fds=[theirs_in, theirs_out],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._read = bytearray()
        self._asked = 0
        self._session = ""
        self.addresses: list[str] = []  # requested by the page
        self.complaints: list[str] = []  # from the page's policy or its script

    def __enter__(self) -> Self:
        """Open a page."""
        try:
            target = self("Target.createTarget", url="about:blank")["targetId"]
            self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Network", "Runtime", "Log"):
                self(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait(PATIENCE)
        os.close(self._in)
        os.close(self._out)

    def __call__(self, method: str, **params: object) -> dict[str, Any]:
        """Send a command and return its result."""
        self._asked += 1
        message: dict[str, object] = {"id": self._asked, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            said = json.loads(self._next())
            self._note(said)
            if said.get("id") == self._asked:
                assert "error" not in said, said["error"]
                result: dict[str, Any] = said["result"]
                return result

    def value(self, expression: str) -> Any:  # noqa: ANN401  (what JavaScript has)
        """Return an expression's value in the page, once there is one."""
        answer = self("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until a condition holds in the page."""
        assert self.value(UNTIL % condition)

    def look(self, width: int, height: int) -> dict[str, Any]:
        """Return the visible content in a window of that size, or on a phone."""
        phone = width < 600
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        seen: dict[str, Any] = self.value(SEEN.replace("WIDTH", str(width)))  # a phone's innerWidth grows with the page
        return seen

    def picture(self, name: str) -> None:
        """Save a screenshot in the folder of PAGE_PICTURES, if set."""
        if PICTURES:
            shot = self("Page.captureScreenshot", format="png", captureBeyondViewport=False)
            Path(PICTURES, f"{name}.png").write_bytes(b64decode(shot["data"]))

    def _next(self) -> bytes:
        """Return the next message; each ends with a zero byte."""
        while b"\0" not in self._read:
            assert select.select([self._in], [], [], PATIENCE)[0], "the browser says nothing"
            got = os.read(self._in, 1 << 16)
            assert got, "the browser has ended"
            self._read += got
        message, _, self._read = self._read.partition(b"\0")
        return bytes(message)

    def _note(self, said: dict[str, Any]) -> None:
        match said.get("method"):
            case "Network.requestWillBeSent":
                self.addresses.append(said["params"]["request"]["url"])
            case "Log.entryAdded":
                self.complaints.append(said["params"]["entry"]["text"])
            case "Runtime.exceptionThrown":
                self.complaints.append(str(said["params"]["exceptionDetails"]))


@contextmanager
def serving(shop: Shop) -> Generator[str]:
    """Serve on a loopback socket, in a thread, and yield the address."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        given = shop.settings
        app = create_app(Settings(given.invoice_code, given.shop_token, url, given.backend, given.orders))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, args=[[listening]])
        thread.start()
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join(PATIENCE)


def test_the_page_changes_to_paid_without_a_reload(shop: Shop, tmp_path: Path) -> None:
    """On a phone and on a desktop the page shows amount, code and links, and changes to paid after the callback.

    It sends requests to the shop alone, and neither its policy nor its script reports an error.
    """
    browser_path()
    with (
        serving(shop) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE) as http,
        Browser(tmp_path / "profile") as browser,
    ):
        headers = {"Authorization": f"Bearer {shop.settings.shop_token}"}
        session = http.post("/api/create-payment-session", json={"amount": "45900"}, headers=headers).json()
        links = [session["short_url"], *(bank["link"] for bank in session["banks"])]
        browser("Page.navigate", url=session["page"])
        browser.until("document.body?.dataset.status === 'open' && document.querySelector('img').complete")
        for width, height in SIZES:
            seen = browser.look(width, height)
            assert ("45,900 ₮" in seen["text"], "Paid" in seen["text"]) == (True, False)
            assert min(seen["code"]) >= 200, "a code that small is hard to read for a camera"
            assert seen["links"] == links
            assert not seen["wide"], "it must not be moved sideways"
            browser.picture(f"open-{width}")

        payment_id = shop.qpay.pay(session["invoice_id"])
        assert http.get(shop.qpay.callback_of(payment_id)).text == "SUCCESS"
        browser.until("document.body.dataset.status === 'paid'")
        for width, height in SIZES:
            seen = browser.look(width, height)
            assert ("45,900 ₮" in seen["text"], "Paid" in seen["text"]) == (True, True)
            assert (seen["code"], seen["links"], seen["wide"]) == (None, [], False)
            browser.picture(f"paid-{width}")
        assert {address.split("/")[2] for address in browser.addresses if "://" in address} == {url.split("/")[2]}
        assert browser.complaints == []
