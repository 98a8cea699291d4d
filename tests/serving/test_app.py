"""What a real server answers where all is well, against its own description."""

import io
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

import foveal
from foveal.exported.engine import OnnxPredictor
from foveal.serving.answers import Models, Predictions, ProblemAnswer
from foveal.serving.problems import KINDS
from plain_export import write_export

CLASSES = ("10", "2", '<img src=x onerror=alert(1)>"', "=HYPERLINK(1)", "ä\n\u2028 b")
ORIGIN = "https://app.example"


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("exports of mine")
    write_export(folder / "a model", class_names=CLASSES, seed=1)
    write_export(folder / "other" / "bundle", heatmap=False, seed=2)
    write_export(folder / "again" / "a model", class_names=CLASSES, seed=3)
    return [folder / "a model", folder / "other" / "bundle", folder / "again" / "a model" / "model.onnx"]


@pytest.fixture(scope="module")
def client(exports: list[Path]) -> Iterator[httpx.Client]:
    with (
        foveal.Server(exports, overrides=[f"serve.allowed_origins=[{ORIGIN}]"]) as server,
        httpx.Client(base_url=server.url, timeout=60.0) as asking,
    ):
        assert server.model_names == ("a model", "other", "a model-2")
        assert server.url in server._repr_html_()
        yield asking


def png(seed: int) -> bytes:
    content = io.BytesIO()
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(content, "PNG")
    return content.getvalue()


def predictions(reply: httpx.Response) -> Predictions:
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/json"
    return Predictions.model_validate_json(reply.content)


def problem(reply: httpx.Response, status: int) -> ProblemAnswer:
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/problem+json"), reply.text
    found = ProblemAnswer.model_validate_json(reply.content)
    code = found.type.removeprefix("/docs#")
    assert (KINDS[code], found.status) == ((status, found.title), status)
    return found


def test_every_model_and_way_to_send_an_image_answers_as_the_engine_does(
    client: httpx.Client, exports: list[Path]
) -> None:
    image = png(0)
    for path, address in zip(
        exports, ("/v1/predict", "/v1/models/other/predict", f"/v1/models/{quote('a model-2')}/predict"), strict=True
    ):
        for tta in ("none", "flip", "3"):
            expected = OnnxPredictor(path, tta=tta)(image)
            sent = [
                client.post(address, params={"tta": tta}, files={"image": ("ä 1.png", image)}),
                client.post(address, params={"tta": tta}, content=image, headers={"Content-Type": "image/x-any"}),
                client.post(
                    address, params={"tta": tta}, content=image, headers={"Content-Type": "application/octet-stream"}
                ),
                client.post(
                    address, params={"tta": tta}, content=iter([image[:100], image[100:]]),
                    headers={"Content-Type": "image/png"},
                ),
            ]  # fmt: skip
            names = ["ä 1.png", "", "", ""]
            for reply, name in zip(sent, names, strict=True):
                (said,) = predictions(reply).predictions
                assert (said.name, said.status, said.predicted) == (name, "ok", expected.predicted)
                assert list((said.probabilities or {}).values()) == pytest.approx(expected.probabilities, abs=1e-9)
                assert said.probability == pytest.approx(expected.probability, abs=1e-9)
                assert list(said.probabilities or ()) == list(OnnxPredictor(path).class_names)


def test_a_bad_image_alone_is_a_problem_and_among_others_an_entry(client: httpx.Client) -> None:
    bad = png(1)[:200]
    words = problem(client.post("/v1/predict", files={"image": bad}), 422).detail
    files = [("image", ("1.png", png(1))), ("image", ("2.png", bad)), ("image", ("3.png", b""))]
    said = predictions(client.post("/v1/predict", files=files)).predictions
    assert [each.status for each in said] == ["ok", "failed", "failed"]
    assert (said[1].error.detail, said[1].predicted, said[1].probabilities) == (words, None, None)  # type: ignore[union-attr]


def test_a_heatmap_comes_where_there_is_one_and_the_reason_where_there_is_none(client: httpx.Client) -> None:
    for address, has_map in (("/v1/predict", True), ("/v1/models/other/predict", False)):
        (plain,) = predictions(client.post(address, files={"image": png(2)})).predictions
        (said,) = predictions(client.post(f"{address}?heatmap=true", files={"image": png(2)})).predictions
        assert (plain.heatmap, plain.heatmap_reason) == (None, "")
        assert (said.heatmap is not None) is has_map
        assert bool(said.heatmap_reason) is not has_map
        if said.heatmap is not None:
            values = np.array(said.heatmap.values)
            assert said.heatmap.class_ == said.predicted
            assert values.ndim == 2
            assert values.min() >= 0.0
            assert values.max() <= 1.0


def test_what_is_wrong_with_a_request_is_said(client: httpx.Client) -> None:
    image = {"image": png(3)}
    assert "'fip'" in problem(client.post("/v1/predict?tta=fip", files=image), 422).detail
    assert "shade" in problem(client.post("/v1/predict?shade=1", files=image), 422).detail
    problem(client.post("/v1/predict?heatmap=perhaps", files=image), 422)
    assert "tta: may come once" in problem(client.post("/v1/predict?tta=none&tta=flip", files=image), 422).detail
    problem(client.post("/v1/predict?tta=65", files=image), 422)
    problem(client.post("/v1/models/none/predict", files=image), 404)
    assert "'image'" in problem(client.post("/v1/predict", files={"file": png(3)}), 400).detail
    problem(client.post("/v1/predict", data={"image": "text"}), 415)
    problem(client.post("/v1/predict"), 415)
    problem(client.post("/v1/predict", content=b"", headers={"Content-Type": "image/png"}), 400)
    problem(
        client.post("/v1/predict", content=png(3), headers={"Content-Type": "image/png", "Content-Encoding": "gzip"}),
        415,
    )
    for body, kind in [
        (b"", "boundary=b"),
        (b"--b\r\n", ""),
        (b"--b\r\n\r\nx\r\n--b--\r\n", "boundary=b"),
        (b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nx', "boundary=b"),
        (b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--b--\r\n', "boundary=" + "b" * 71),
        (b'--b\r\nContent-Disposition: form-data; name="image"\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n'
         b"--c\r\n\r\nx\r\n--c--\r\n\r\n--b--\r\n", "boundary=b"),
        (b'--b\r\nContent-Disposition: form-data; name="image"\r\nContent-Transfer-Encoding: base64\r\n\r\nx\r\n'
         b"--b--\r\n", "boundary=b"),
        (b'--b\r\nContent-Disposition: form-data; name="image"\r\n' + b"X: y\r\n" * 9 + b"\r\nx\r\n--b--\r\n",
         "boundary=b"),
        (b'--b\r\nContent-Disposition: form-data; name="image"\r\nX: ' + b"y" * 9000 + b"\r\n\r\nx\r\n--b--\r\n",
         "boundary=b"),
    ]:  # fmt: skip
        problem(
            client.post("/v1/predict", content=body, headers={"Content-Type": f"multipart/form-data; {kind}".rstrip()}),
            400,
        )


def test_the_models_are_listed_with_what_they_can(client: httpx.Client) -> None:
    found = Models.model_validate_json(client.get("/v1/models").content)
    assert [(each.name, each.is_default, each.heatmap) for each in found.models] == [
        ("a model", True, True), ("other", False, False), ("a model-2", False, True),
    ]  # fmt: skip
    assert tuple(found.models[0].class_names) == CLASSES
    assert (found.limits.max_images, found.limits.max_upload_bytes) == (32, 32 * 2**20)


def test_the_description_names_every_route_and_every_answer_it_gives(client: httpx.Client) -> None:
    tree = client.get("/openapi.json").json()
    assert tree["openapi"].startswith("3.")
    text = json.dumps(tree)
    for name in re.findall(r'"#/components/schemas/(\w+)"', text):
        assert name in tree["components"]["schemas"]
    assert "HTTPValidationError" not in text
    assert '"401"' not in text  # this server has no token
    for path in ("/v1/predict", "/v1/models/{name}/predict"):
        operation = tree["paths"][path]["post"]
        assert set(operation["requestBody"]["content"]) == {
            "multipart/form-data", "image/*", "application/octet-stream",
        }  # fmt: skip
        assert set(operation["responses"]) == {"200", "400", "403", "404", "408", "413", "415", "421", "422", "503"}
        for status, answer in operation["responses"].items():
            kind = "application/json" if status == "200" else "application/problem+json"
            assert list(answer["content"]) == [kind]
        assert {"tta", "heatmap"} <= {each["name"] for each in operation["parameters"]}


def test_the_page_of_the_interface_needs_nothing_from_elsewhere(client: httpx.Client) -> None:
    reply = client.get("/docs")
    assert reply.status_code == 200
    assert not re.search(r'(?:src|href)="(?:https?:)?//', reply.text)
    assert "<script" not in reply.text
    assert reply.text.count("<main>") == reply.text.count("</main>") == 1  # a screen reader goes by landmarks
    assert "style-src 'sha256-" in reply.headers["content-security-policy"]
    for path in client.get("/openapi.json").json()["paths"]:
        assert path in reply.text
    for code in KINDS:
        assert f'id="{code}"' in reply.text


def test_the_description_is_open_where_there_is_a_token_and_the_same_whatever_is_served(exports: list[Path]) -> None:
    """A browser sends no token when it opens a page; what it gets therefore says nothing of models, limits or paths."""
    found: list[dict[str, bytes]] = []
    for export, overrides in ((exports[0], []), (exports[1], ["serve.max_images=7", "serve.allowed_hosts=[lab.lan]"])):
        with foveal.Server(export, token="a-token-of-enough-letters", overrides=overrides) as server:
            replies = {path: httpx.get(f"{server.url}{path}") for path in ("/docs", "/openapi.json")}
            assert httpx.get(f"{server.url}/v1/models").status_code == 401
        assert {reply.status_code for reply in replies.values()} == {200}
        found.append({path: reply.content for path, reply in replies.items()})
    assert found[0] == found[1]
    assert b"Needs the token" in found[0]["/docs"]
    tree = json.loads(found[0]["/openapi.json"])
    assert {path for path, ways in tree["paths"].items() for way in ways.values() if "security" not in way} == {
        "/healthz",
        "/readyz",
    }


def test_the_page_and_its_files_are_kept_by_browsers_and_asked_about(client: httpx.Client) -> None:
    page = client.get("/")
    kinds = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assets = [f"/{path}" for path in re.findall(r'(?:src|href)="(assets/[\w.]+)"', page.text)]
    assert {"/assets/page.css", "/assets/page.js"} <= set(assets)
    for path in ["/", *assets]:
        reply = client.get(path)
        assert reply.headers["cache-control"] == "no-cache"
        if path != "/":
            assert reply.headers["content-type"] == kinds[path[path.rfind(".") :]]
        again = client.get(path, headers={"If-None-Match": f'"other", W/{reply.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
    problem(client.get("/assets/index.html"), 404)
    problem(client.get("/assets/page.py"), 404)


def test_every_answer_is_safe_in_a_browser(client: httpx.Client) -> None:
    for reply in (client.get("/"), client.get("/none"), client.get("/healthz"), client.put("/v1/models")):
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert "camera=(self)" in reply.headers["permissions-policy"]
        assert not {"server", "set-cookie", "x-powered-by"} & set(reply.headers)


def test_head_and_options_say_what_they_should(client: httpx.Client) -> None:
    for path in ("/", "/healthz", "/v1/models", "/assets/page.css", "/metrics"):
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
    assert client.head("/v1/predict").status_code == 405
    assert client.options("/v1/models").headers["allow"] == "GET, HEAD, OPTIONS"
    assert client.options("/v1/predict").headers["allow"] == "POST, OPTIONS"
    assert problem(client.get("/v1/predict"), 405).detail == "GET cannot be done here; POST, OPTIONS can."
    problem(client.get("/v1/models/"), 404)


def test_a_page_that_is_allowed_may_ask_and_read_the_answer(client: httpx.Client) -> None:
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    reply = client.options("/v1/predict", headers=asked)
    assert reply.status_code == 204
    assert reply.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in reply.headers["access-control-allow-methods"]
    assert "authorization" in reply.headers["access-control-allow-headers"]
    for reply in (
        client.post("/v1/predict", files={"image": png(4)}, headers={"Origin": ORIGIN}),
        client.post("/v1/predict", headers={"Origin": ORIGIN}),
    ):
        assert reply.headers["access-control-allow-origin"] == ORIGIN
        assert reply.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in reply.headers
    assert "access-control-allow-origin" not in client.get("/v1/models").headers


def test_figures_count_what_happened(client: httpx.Client) -> None:
    def figures() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        text = client.get("/metrics").text
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    before = figures()
    client.post("/v1/models/other/predict", files=[("image", png(seed)) for seed in range(5)] + [("image", b"no")])
    client.get("/nowhere/1")
    client.get("/nowhere/2")
    after = figures()

    def grown(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after.get(key, 0.0) - before.get(key, 0.0)

    assert grown("foveal_requests_total", route="/v1/models/{name}/predict", status="200") == 1
    assert grown("foveal_requests_total", route="other", status="404") == 2
    assert grown("foveal_images_total", model="other", status="ok") == 5
    assert grown("foveal_images_total", model="other", status="failed") == 1
    assert grown("foveal_image_seconds_count", stage="decode") == 6
    assert grown("foveal_image_seconds_count", stage="compute") == 5
    assert grown("foveal_request_seconds_count") == 1
    assert grown("foveal_batch_size_sum", model="other") == 5
    assert after["foveal_ready", ()] == 1
    assert after["foveal_queue_images", ()] == 0
    assert after["foveal_worker_restarts_total", ()] == 0
    assert "nowhere" not in json.dumps([list(key) for key in after], default=str)


def test_the_standard_library_alone_can_ask(client: httpx.Client) -> None:
    address = f"{str(client.base_url).rstrip('/')}/v1/predict"
    asked = urllib.request.Request(address, data=png(5), headers={"Content-Type": "image/png"}, method="POST")
    with urllib.request.urlopen(asked, timeout=30) as reply:
        said: dict[str, Any] = json.load(reply)
    assert said["predictions"][0]["predicted"] in CLASSES
